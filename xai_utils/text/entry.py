"""One text of a study, as its file names it, and how texts become what a model reads."""

from typing import Annotated, Literal, Self

from pydantic import Field, Strict, model_validator

from xai_utils.errors import shown
from xai_utils.fields import Entry, FileName, Flag, Readable, Text

TargetKind = Literal["logprob", "logit", "contrast", "sum_logits"]


class Reading(Entry):
    """How a text becomes what a model reads; a study holds these keys too, with the same defaults."""

    prefix: Literal["document_start", "none"] = "document_start"
    max_tokens: Annotated[int, Strict(), Field(ge=2)] = 128  # a document start and something behind it
    normalisation: Literal["NFC", "NFKC", "none"] = "NFC"


class TextEntry(Entry):
    """One text of a study. `answer` and `contrast` are written by a person, with leading space and terminator."""

    id: FileName
    text: Readable
    answer: Readable | None = None
    contrast: Readable | None = None
    language: Text | None = None
    group: Text | None = None
    pair: Text | None = None  # id of the same text in the other language
    rewordings: tuple[Readable, ...] = ()
    chat: Flag = False
    target: TargetKind | None = None  # instead of the study's

    @property
    def observation(self) -> str:
        """What counts once in a test over texts: the text, or its translation pair, by the first of both ids."""
        return min(self.id, self.pair or self.id)

    @model_validator(mode="after")
    def _contrast_differs(self) -> Self:
        if self.contrast is not None and self.contrast == self.answer:
            raise ValueError(f"answer and contrast are both {shown(self.answer)}; give two different ones")
        return self
