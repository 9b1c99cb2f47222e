"""Progress through long work, in cases: a bar where a person works, a message to the runner where one runs notebooks.

The time left is what similar cases took, by their length. The runner writes one line on the terminal (`Line`), which
changes each second.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from xai_utils.notices import headless, publish

RECENT = 8  # cases of a kind whose mean time is that of the next
TICK, LOGGED = 1.0, 30.0  # seconds between changes of the line: on a terminal, and in a log

Item = TypeVar("Item")


# ---- where the work is done


def progress(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items one after the other, counted on a bar, or told to the runner of notebooks."""
    if not headless():
        return iter(tqdm(items, desc=what, disable=len(items) < 2))
    return _told(items, what, publish)


def _told(
    items: Sequence[Item],
    what: str,
    tell: Callable[[dict[str, Any]], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    took: dict[str, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=RECENT))
    for done, item in enumerate(items):
        left = expected([(_kind(other), _size(other)) for other in items[done:]], took)
        tell({"what": what, "case": _name(item), "done": done, "of": len(items), "left": left})
        start = time.monotonic()
        yield item
        took[_kind(item)].append((_size(item), time.monotonic() - start))
    tell({})


def expected(cases: Sequence[tuple[str, float]], took: Mapping[str, Sequence[tuple[float, float]]]) -> float | None:
    """Seconds that cases, of a kind and a size each, will take; None before any is done.

    `took` has sizes and seconds of recent cases of each kind: time grows with size. A kind without any is taken for the
    mean of the others.

    >>> expected([("a", 2), ("a", 1), ("b", 1)], {"a": [(1, 1.0), (3, 3.0)]})
    4.0
    """
    known = {kind: sum(seconds for _, seconds in done) / sum(size for size, _ in done) for kind, done in took.items()}
    if not known:
        return None
    other = sum(known.values()) / len(known)
    return sum(size * known.get(kind, other) for kind, size in cases)


def _name(item: Any) -> str:
    if isinstance(item, tuple):
        return "/".join(map(str, item))
    return str(getattr(item, "id", getattr(item, "label", item)))


def _kind(item: Any) -> str:
    return str(item[0]) if isinstance(item, tuple) else str(getattr(item, "name", ""))


def _size(item: Any) -> float:
    """The tokens of a case and its answer; 1 of what is no case."""
    return sum(len(case.tokens) + len(case.answer_ids) for case in getattr(item, "cases", ())) or 1


# ---- where it is shown


class Line:
    """One line on stderr on where a run is. `figs` is the folder whose first new figure is told."""

    def __init__(self, notebooks: int, figs: Path):
        self.notebooks, self.figs = notebooks, figs
        self.number, self.name, self.cell = 0, "", 0
        self.headings: Sequence[str] = ()
        self.message: dict[str, Any] = {}
        self._start = self._since = time.monotonic()
        self._begun, self._figure = time.time(), False
        self._over = threading.Event()
        self._terminal = sys.stderr.isatty()
        self._bar: tqdm[Any] = tqdm(bar_format="{desc}", file=sys.stderr, disable=not self._terminal, leave=False)
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Line:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._bar.close()

    def notebook(self, name: str, headings: Sequence[str]) -> None:
        """The next notebook begins; `headings` are those that its code cells stand under."""
        self.number, self.name, self.cell, self.headings, self.message = self.number + 1, name, 0, headings, {}
        self.show()

    def next_cell(self) -> None:
        self.cell, self.message = self.cell + 1, {}

    def told(self, message: dict[str, Any]) -> None:
        """What the kernel says of its cases: `what`, `case`, `done`, `of`, `left`; nothing at the end of a loop.

        A `notice` is written out.
        """
        if "notice" in message:
            tqdm.write(message["notice"], file=sys.stderr)
            return
        self.message, self._since = message, time.monotonic()

    def text(self) -> str:
        """The line.

        A case that takes longer than expected leaves the others' time.
        """
        now = time.monotonic()
        count, here = len(self.headings), self.headings[self.cell - 1] if self.cell else ""
        at = f"cell {self.cell} of {count}: {here}" if here else "starting Python"
        parts = [f"{self.name} ({self.number} of {self.notebooks})", at]
        if self.message:
            said = self.message
            parts.append(
                f"{said['what']} {said['done'] + 1} of {said['of']}: {said['case']}, {now - self._since:.0f} s"
            )
            if said["left"] is not None:
                parts.append(f"{clock(max(said['left'] - (now - self._since), 0))} left")
        return ", ".join([*parts, f"{clock(now - self._start)} since the start"])

    def show(self) -> None:
        if self._terminal:
            self._bar.set_description_str(self.text())
        else:
            print(self.text(), file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self._over.wait(TICK if self._terminal else LOGGED):
            self.first_figure()
            self.show()

    def first_figure(self) -> None:
        """Print the path of the first figure that this run has written, once."""
        if self._figure:
            return
        new = [path for path in self.figs.glob("*.png") if path.stat().st_mtime >= self._begun]
        if new:
            self._figure = True
            first = min(new, key=lambda path: path.stat().st_mtime)
            seconds = first.stat().st_mtime - self._begun
            tqdm.write(f"first figure after {clock(seconds)}: {first}", file=sys.stderr)


def clock(seconds: float) -> str:
    """
    >>> clock(5), clock(65), clock(3700)
    ('5 s', '1:05 min', '1:01 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"
