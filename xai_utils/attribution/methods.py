"""The table of attribution methods: a new one is a function `method(model, case, target, **settings)` and a line.

A line names its function, which is imported when it is first called: a study file is read without torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from xai_utils.errors import UserError, nearest

if TYPE_CHECKING:
    from xai_utils.attribution.result import Attribution


@dataclass(frozen=True)
class Method:
    """One line of the table: the function, what it is in a few words, and settings that a study does not change."""

    source: str | Callable[..., Attribution]  # module.function in this folder, or the function itself
    description: str
    fixed: dict[str, Any] = field(default_factory=dict)
    family: str = "influence"  # which notebook runs it: gradients (02), attention (03), influence (04)
    cost: str = "not said"  # passes of the model, roughly

    @property
    def function(self) -> Callable[..., Attribution]:
        if callable(self.source):
            return self.source
        module, _, name = self.source.rpartition(".")
        function: Callable[..., Attribution] = getattr(import_module(f"xai_utils.attribution.{module}"), name)
        return function

    @property
    def settings(self) -> list[str]:
        kinds = inspect.signature(self.function).parameters.values()
        return [parameter.name for parameter in kinds if parameter.kind is inspect.Parameter.KEYWORD_ONLY]


DEFAULT_METHOD = "panel_shapley"  # what the front door uses when no method is named
SUBSETS = "2^n versions of a prompt of n words where budget allows, else random orders"

METHODS: dict[str, Method] = {
    "panel_shapley": Method(
        "shapley.panel_shapley",
        "Shapley values of words, mean and range over several absences",
        cost=f"{SUBSETS}; each under every absence",
    ),
    "integrated_gradients": Method(
        "integrated_gradients.integrated_gradients",
        "integrated gradients with a certificate",
        family="gradients",
        cost="50 gradients or more, until the error is within tolerance or budget ends",
    ),
    "fixed_steps": Method(
        "integrated_gradients.fixed_steps",
        "integrated gradients, the original's 50 steps from zero",
        {"baseline": "zero", "keep_sink": False},
        "gradients",
        "one gradient a step",
    ),
    "input_x_gradient": Method(
        "integrated_gradients.input_x_gradient", "embedding times gradient", family="gradients", cost="one gradient"
    ),
    "cp_lrp": Method(
        "relevance.cp_lrp", "relevance in one backward pass, conserved", family="gradients", cost="one gradient"
    ),
    "attn_lrp": Method(
        "relevance.attn_lrp",
        "relevance in one backward pass, through queries and keys",
        family="gradients",
        cost="one gradient",
    ),
    "attn_lrp_norm": Method(
        "relevance.attn_lrp_norm",
        "norm of that pass's gradient, without a sign",
        family="gradients",
        cost="one gradient",
    ),
    "shapley": Method("shapley.shapley", "Shapley values of words under one absence", cost=SUBSETS),
    "ablation": Method(
        "perturbation.ablation", "change of the target without one token or word", cost="one pass a token and a word"
    ),
    "zero_ablation": Method(
        "perturbation.ablation",
        "ablation to the zero vector, as in the original",
        {"absence": "zero", "keep_sink": False},
        cost="one pass a token and a word",
    ),
    "lime": Method("lime.lime", "local linear model over words", cost="2^n versions of a prompt, at most budget"),
    "sensitivity": Method(
        "noise.sensitivity",
        "standard deviation of the target under noise on a token or word",
        cost="draws passes a token and a word",
    ),
    "attention": Method(
        "rollout.attention",
        "attention of the last position, mean over all layers and heads",
        family="attention",
        cost="one pass",
    ),
    "rollout": Method(
        "rollout.rollout", "attention followed back through the layers", family="attention", cost="one pass"
    ),
}


def method_named(name: str) -> Method:
    """Raises UserError, which lists the methods, for an unknown name."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


PROPER = {
    "lime": "LIME",
    "cp_lrp": "CP-LRP",
    "attn_lrp": "AttnLRP",
    "attn_lrp_norm": "norm of AttnLRP's gradient",
    "panel_shapley": "panel Shapley values",
    "shapley": "Shapley values",
    "first_to_last": "first to last (control)",
    "last_to_first": "last to first (control)",
}


def method_name(method: str) -> str:
    """A method as prose and figures call it.

    >>> method_name("input_x_gradient"), method_name("lime")
    ('input x gradient', 'LIME')
    """
    return PROPER.get(method, method.replace("_", " "))
