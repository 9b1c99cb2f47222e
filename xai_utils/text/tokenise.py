"""How a tokenizer's pieces become ids with character spans and readable labels, for plain text and chat templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xai_utils.errors import UserError
from xai_utils.text.words import characters

if TYPE_CHECKING:
    from xai_utils.models.loading import LoadedModel

SUBSCRIPT = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def _spans(text: str, offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give each token the white space in front of it, which some tokenizers leave out of their offsets."""
    spans, covered = [], 0
    for start, end in offsets:
        if end > start >= covered and text[covered:start].isspace():
            start = covered
        spans.append((start, end))
        covered = max(covered, end)
    return spans


def labels(text: str, spans: list[tuple[int, int] | None], names: list[str]) -> list[str]:
    """Readable labels: the source characters; tokens that share a character are told apart by a subscript."""
    readers: dict[int, list[int]] = {}
    for position, span in enumerate(spans):
        for character in range(*(span or (0, 0))):
            readers.setdefault(character, []).append(position)
    part: dict[int, int] = {}
    for sharing in readers.values():
        if len(sharing) > 1:
            for position in sharing:
                part.setdefault(position, part.get(position - 1, 0) + 1 if position - 1 in sharing else 1)
    found = []
    for position, span in enumerate(spans):
        if span is None or span[0] == span[1]:
            found.append(names[position])
        else:
            mark = str(part[position]).translate(SUBSCRIPT) if position in part else ""
            found.append(characters(text[slice(*span)]) + mark)
    return found


def token_name(model: LoadedModel, token: int) -> str:
    """What a token that stands for no character of the text is called: its own text, white space made visible."""
    return characters(str(model.tokenizer.decode([token])))


def plain_ids(model: LoadedModel, text: str, prefix: str) -> tuple[list[int], list[tuple[int, int] | None]]:
    """Token ids of a text and the characters that each covers, None for a special token, behind the prefix."""
    encoded = model.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, special = list(encoded["input_ids"]), encoded["special_tokens_mask"]
    real = [i for i, mark in enumerate(special) if not mark]
    spans: list[tuple[int, int] | None] = [None] * len(ids)
    for i, span in zip(real, _spans(text, [encoded["offset_mapping"][i] for i in real]), strict=True):
        spans[i] = span
    while special and special[-1]:  # an end-of-sequence token behind the prompt would cut the answer off
        ids, spans, special = ids[:-1], spans[:-1], special[:-1]
    if prefix == "document_start" and model.document_start is not None:
        ids, spans = [model.document_start, *ids], [None, *spans]
    return ids, spans


def chat_ids(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int] | None]]:
    """Token ids and characters of a text as a user's turn in the chat template. Raises UserError without a template."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "this model's tokenizer has no chat template; expected one because a text says chat: true; "
            "set chat: false for that text or name another tokenizer"
        )
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    at = rendered.rfind(text)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    spans: list[tuple[int, int] | None] = []
    for start, end in _spans(rendered, encoded["offset_mapping"]):
        first, last = max(start - at, 0), min(end - at, len(text))
        spans.append((first, last) if at >= 0 and last > first else None)
    return list(encoded["input_ids"]), spans


def continuation_ids(
    tokenizer: Any, prompt: list[int], text: str | None, chat: bool = False, what: str = "answer"
) -> tuple[int, ...]:
    """Token ids of a continuation, tokenised apart from the prompt, that reads back as the text behind the prompt.

    SentencePiece tokenizers put a space in front of whatever they read, so there the text goes in without its own.
    After a chat template the reply starts a line: its leading space is dropped. Raises UserError if no way reads back.
    """
    if text is None:
        return ()
    wanted = text.lstrip(" ") if chat else text
    prefix = tokenizer.decode(prompt, clean_up_tokenization_spaces=False)
    for candidate in dict.fromkeys((wanted, wanted.lstrip(" "))):
        ids = tokenizer(candidate, add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id in ids and tokenizer.decode([tokenizer.unk_token_id]) not in wanted:
            continue
        if ids and tokenizer.decode([*prompt, *ids], clean_up_tokenization_spaces=False) == prefix + wanted:
            return tuple(ids)
    raise UserError(
        f"{what} {text!r} cannot be written in the vocabulary of this model; expected a text that its tokenizer "
        "reads back unchanged; choose another answer or leave it out"
    )
