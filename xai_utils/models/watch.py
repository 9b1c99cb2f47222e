"""Long computations, watched and stopped from another thread.

Whatever a method does, it passes its prompts through a model, layer by layer: that is where progress is counted and
where a stop takes effect, so that no method needs to know of either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar, Token
from typing import Any, Self, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

_current: ContextVar[Watch | None] = ContextVar("_current", default=None)


def active() -> bool:
    """Whether the passes of this context are counted, layer by layer."""
    return _current.get() is not None


def came_to(error: float, goal: float) -> None:
    """Told by a method that computes until its error is small: the error now, and at which it ends."""
    watch = _current.get()
    if watch is not None:
        watch.error = error, goal


class Stopped(Exception):
    """Raised inside a watched computation after `Watch.stop`."""


class Watch:
    """A context in which passes through some models are counted, and can be stopped.

    `passes` are sequences, a layer of one counting as its share; `report` is called with them as they grow. `error` is
    what a method that computes until it is small told last, with its goal; None where none did. After
    `stop`, from any thread, the next layer raises Stopped. What other threads compute for themselves is neither
    counted nor stopped; passes that this context spreads over threads (batching.py) are.
    """

    def __init__(self, models: Iterable[PreTrainedModel], report: Callable[[float], None] = lambda passes: None):
        self.passes = 0.0
        self.error: tuple[float, float] | None = None
        self._models, self._report = list(models), report
        self._stop, self._count = threading.Event(), threading.Lock()
        self._token: Token[Watch | None] | None = None
        self._handles: list[Any] = []

    def stop(self) -> None:
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def __enter__(self) -> Self:
        self._token = _current.set(self)
        for model in self._models:
            found = decoder_layers(model)
            layers: list[nn.Module] = list(found[1]) if found else [model]
            for layer in layers:
                hook = self._counting(1 / len(layers))
                self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self._token is not None:
            _current.reset(self._token)

    def _counting(self, share: float) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            if _current.get() is not self:
                return
            if self.stopped:
                raise Stopped
            batch = next(value for value in (*inputs, *options.values()) if isinstance(value, Tensor))
            with self._count:
                self.passes += share * len(batch)
                self._report(self.passes)

        return hook


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """The name, such as `model.layers`, and the list of the decoder layers: as many as the configuration says."""
    count = cast(PreTrainedModel, model).config.get_text_config().num_hidden_layers
    lists = ((name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList))
    return next(((name, part) for name, part in lists if len(part) == count), None)
