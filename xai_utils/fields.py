"""Kinds of values that a study file holds, and the base of its entries: frozen, unknown keys refused."""

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict


def text_problem(text: str) -> str | None:
    """Why a prompt or answer cannot be explained, or None.

    >>> text_problem("Paris") is None, text_problem("  ")
    (True, 'it is empty; write at least one visible character')
    >>> text_problem("a\\x07b")
    'it holds the control character U+0007 at character 1; remove it'
    """
    for position, character in enumerate(text):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            kind = "control character" if unicodedata.category(character) == "Cc" else "half of a surrogate pair"
            return f"it holds the {kind} U+{ord(character):04X} at character {position}; remove it"
    if not text.strip():
        return "it is empty; write at least one visible character"
    if all(unicodedata.category(character)[0] in "CZ" for character in text if not character.isspace()):
        return "nothing in it can be seen; write at least one visible character"
    return None


def _file_name(name: str) -> str:
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name, re.IGNORECASE)
    if reserved or not re.fullmatch(r"\w([\w.-]{0,62}\w)?", name):
        raise ValueError(
            "not usable as a file name; use letters, digits, '-', '_' and '.' inside, at most 64 characters"
        )
    return name


def _readable(text: str) -> str:
    if problem := text_problem(text):
        raise ValueError(problem)
    return text


Text = Annotated[str, Strict(), Field(min_length=1)]
FileName = Annotated[str, Strict(), AfterValidator(_file_name)]
Readable = Annotated[str, Strict(), AfterValidator(_readable)]
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
