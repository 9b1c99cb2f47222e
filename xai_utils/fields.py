"""Kinds of values that a study file holds, the base of its entries, and what is wrong with a value in one line."""

import re
import unicodedata
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError
from pydantic_core import ErrorDetails

from xai_utils.errors import UserError, shown


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
    """Frozen; an unknown key is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Made = TypeVar("Made", bound=Entry)


def checked(kind: type[Made], **values: Any) -> Made:
    """An entry from values given in Python. Raises UserError, one line, for a value that does not fit."""
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(said(error.errors()[0])) from None


def place_of(problem: ErrorDetails) -> str:
    """Where a problem is, as `texts[0].answer`."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    return "".join(parts).removeprefix(".")


def said(problem: ErrorDetails) -> str:
    """One pydantic problem as `place: what is wrong; what was expected`."""
    where, kind, value = place_of(problem), problem["type"], problem.get("input")
    if kind == "value_error":
        wrong = f"{shown(value)}: " if isinstance(value, str) else ""
        return f"{where}: {wrong}{problem['ctx']['error']}" if where else str(problem["ctx"]["error"])
    if kind == "literal_error":
        return f"{where}: expected {problem['ctx']['expected']}, got {shown(value)}"
    if kind == "string_type":
        return f"{where}: expected text, got {kind_of(value)}" + ("" if value is None else "; put it in quotes")
    if kind in EXPECTED:
        return f"{where}: expected {EXPECTED[kind]}, got {kind_of(value)}"
    if kind == "too_short":
        return f"{where}: the list is empty; give at least one"
    return f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {shown(value)}"


EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "tuple_type": "a list",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
}
KINDS = {
    bool: "a truth value",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def kind_of(value: object) -> str:
    """What a value is, for a message.

    >>> kind_of(3), kind_of(None)
    ('a whole number (3)', 'nothing')
    """
    if value is None:
        return "nothing"
    return f"{KINDS.get(type(value), 'a ' + type(value).__name__)} ({shown(value)})"
