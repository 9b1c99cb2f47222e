"""How a result shows itself in a notebook: HTML, a picture for pages that keep no HTML, and plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


class Displayed:
    """Shows itself by three methods of its class, of which IPython asks for what its front end can show."""

    def _repr_html_(self) -> str:
        raise NotImplementedError

    def png(self) -> bytes:
        raise NotImplementedError

    def _repr_mimebundle_(
        self, include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
    ) -> dict[str, Any]:
        makers: dict[str, Callable[[], Any]] = {
            "text/plain": self.__repr__,
            "text/html": self._repr_html_,
            "image/png": self.png,
        }
        wanted = (set(include) if include else set(makers)) - set(exclude or ())
        return {kind: make() for kind, make in makers.items() if kind in wanted}
