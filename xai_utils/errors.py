"""What the user can fix, in one line: what was wrong, what was expected, what to do."""

import difflib
from collections.abc import Iterable

MORE = "--debug shows where"  # how a line ends on an error that nobody foresaw


class UserError(Exception):
    """Something the user can fix, in one line: what was wrong, what was expected, what to do."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback."""
        return [f"error: {self}"]


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of a message about an unknown name: the likely one, else all of them.

    >>> nearest("revison", ["label", "revision"])
    "did you mean 'revision'?"
    >>> nearest("x", ["zero", "mean"])
    'known are mean, zero'
    """
    known = sorted(choices)
    folded = {choice.casefold(): choice for choice in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"did you mean {folded[close[0]]!r}?" if close else f"known are {', '.join(known)}"


def shown(value: object, limit: int = 60) -> str:
    """A value inside a message: on one line, control characters escaped, not too long."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def first_line(error: BaseException) -> str:
    """The part of a library's message that fits into one of ours: its first line, with the next where it only opens.

    >>> first_line(RuntimeError("Error(s) in loading:\\n\\tsize mismatch for w\\n\\tand for v"))
    'Error(s) in loading: size mismatch for w'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 1 + lines[0].endswith(":")])
