"""One text of a study, as its file names it."""

from typing import Literal, Self

from pydantic import model_validator

from xai_utils.errors import shown
from xai_utils.fields import Entry, FileName, Flag, Readable, Text

TargetKind = Literal["logprob", "logit", "contrast", "sum_logits"]


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

    @model_validator(mode="after")
    def _contrast_differs(self) -> Self:
        if self.contrast is not None and self.contrast == self.answer:
            raise ValueError(f"answer and contrast are both {shown(self.answer)}; give two different ones")
        return self
