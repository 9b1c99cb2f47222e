"""A study times methods gives tables: the one loop, and the one table of methods.

A new method is a function `method(model, case, target, *, ...) -> Attribution` and a line in `METHODS`; notebooks,
cache, comparison, faithfulness and report then have it. Its keyword-only settings are filled from the study's keys of
the same name, unless the table's line fixes them.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from xai_utils import gradients, perturbation, results, rollout, sampling
from xai_utils.attribution import Attribution, Certificate, Piece
from xai_utils.baselines import shared_mean
from xai_utils.continuation import greedy, unrolled
from xai_utils.models import LoadedModel, load
from xai_utils.study import Study, TextEntry, UserError, nearest
from xai_utils.target import Target, make_target
from xai_utils.text import Case, prepare, units


@dataclass(frozen=True)
class Method:
    """One line of the table: the function, what it is in a few words, and settings that a study does not change."""

    function: Callable[..., Attribution]
    description: str
    fixed: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> list[str]:
        kinds = inspect.signature(self.function).parameters.values()
        return [parameter.name for parameter in kinds if parameter.kind is inspect.Parameter.KEYWORD_ONLY]

    @property
    def family(self) -> str:
        """Which notebook runs it: gradients (02), attention (03), and all others, influence (04)."""
        module = self.function.__module__.rpartition(".")[2]
        return {"gradients": "gradients", "rollout": "attention"}.get(module, "influence")


METHODS: dict[str, Method] = {
    "integrated_gradients": Method(gradients.integrated_gradients, "integrated gradients with a certificate"),
    "fixed_steps": Method(
        gradients.fixed_steps,
        "integrated gradients, the original's 50 steps from zero",
        {"baseline": "zero", "keep_sink": False},
    ),
    "input_x_gradient": Method(gradients.input_x_gradient, "embedding times gradient"),
    "expected_gradients": Method(
        gradients.expected_gradients,
        "GradientSHAP over sampled tokens",
        {"tolerance": 0.05, "budget": 128},  # a sample is a gradient, and its error falls with the root of their number
    ),
    "ablation": Method(perturbation.ablation, "change of the target with one token or word at the baseline"),
    "zero_ablation": Method(
        perturbation.ablation,
        "ablation to the zero vector, as in the original",
        {"baseline": "zero", "keep_sink": False},
    ),
    "occlusion": Method(sampling.occlusion, "change of the target with a window of words at the baseline"),
    "sensitivity": Method(perturbation.sensitivity, "standard deviation of the target under noise on a token or word"),
    "sensitivity_mean": Method(perturbation.sensitivity_mean, "mean absolute change of the target under that noise"),
    "shapley": Method(sampling.shapley, "Shapley values of words, enumerated or sampled by orders"),
    "kernel_shap": Method(sampling.kernel_shap, "Shapley values of words by regression on subsets"),
    "lime": Method(sampling.lime, "local linear model over words"),
    "attention": Method(rollout.attention, "attention of the last position, mean over all layers and heads"),
    "rollout": Method(rollout.rollout, "attention followed back through the layers"),
}


def method_named(name: str) -> Method:
    """Raises UserError, which lists the methods, for an unknown name."""
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


class Explainer:
    """Everything that a study's notebooks compute, each thing once: models, cases and cached attributions."""

    def __init__(self, study: Study):
        for name in study.methods:
            method_named(name)
        self.study = study
        self.folders = results.folders(study)

    @functools.cached_property
    def models(self) -> dict[str, LoadedModel]:
        """The study's models by label, with the mean embedding that those of one width have in common."""
        loaded = [load(entry) for entry in self.study.models]
        widths = {model.embedding.shape[1] for model in loaded}
        common = {
            width: shared_mean([model for model in loaded if model.embedding.shape[1] == width]) for width in widths
        }
        return {model.label: dataclasses.replace(model, reference=common[model.embedding.shape[1]]) for model in loaded}

    def methods(self, family: str) -> list[str]:
        """The study's methods of one family (gradients, attention, influence)."""
        return [name for name in self.study.methods if method_named(name).family == family]

    @property
    def baselines(self) -> list[str]:
        """The study's own baseline, then the others that a difference must keep its sign at."""
        return list(dict.fromkeys([self.study.baseline, *self.study.baselines]))

    def on(self, entry: TextEntry) -> Explainer:
        """The same models and settings on one text of one's own; what it computes is cached with the rest."""
        self.models  # noqa: B018 - loaded here, for both
        other = copy.copy(self)
        other.study = self.study.model_copy(update={"texts": (entry,)})
        return other

    @functools.cache  # noqa: B019 - an Explainer lives as long as its notebook
    def case(self, label: str, text: str) -> Case:
        return prepare(self.models[label], self._entry(text), self.study)

    @functools.cache  # noqa: B019
    def target(self, label: str, text: str, kind: str | None = None) -> Target:
        kind = kind or self._entry(text).target or self.study.target
        return make_target(self.models[label], self.case(label, text), kind)

    def _entry(self, text: str) -> Any:
        return next(entry for entry in self.study.texts if entry.id == text)

    def attribute(self, label: str, text: str, method: str, target: str | None = None, **settings: Any) -> Attribution:
        """One attribution, from the cache when the same thing was computed before."""
        return self._explained(label, self.case(label, text), self.target(label, text, target), method, settings)

    def _explained(self, label: str, case: Case, goal: Target, method: str, settings: dict[str, Any]) -> Attribution:
        line, model = method_named(method), self.models[label]
        chosen = {name: getattr(self.study, name) for name in line.settings if hasattr(self.study, name)}
        chosen |= line.fixed | settings
        file = self.cache_file(model, case, goal, line.function, chosen)
        if file.exists():
            return _from_json(json.loads(file.read_text(encoding="utf-8")))
        found = dataclasses.replace(line.function(model, case, goal, **chosen), method=method)
        results.write_text(file, json.dumps(_to_json(found), ensure_ascii=False))
        return found

    def cache_file(
        self, model: LoadedModel, case: Case, target: Target, function: Callable[..., Any], settings: Any
    ) -> Path:
        """Where the result of `function` on one case is kept: a name made of all that it depends on, code included."""
        reference = model.mean_embedding.float().cpu().numpy().tobytes()
        parts = {
            "model": [model.revision, model.entry.dtype, model.device.type, hashlib.sha256(reference).hexdigest()],
            "case": [case.text, case.ids, [(word.start, word.end) for word in case.words]],
            "target": dataclasses.asdict(target),
            "method": [function.__name__, settings],
            "versions": results.versions(),
            "code": code_version(function.__module__),
        }
        name = results.key(parts)
        return self.folders.cache / name[:2] / f"{name}.json"

    def tables(
        self,
        methods: Iterable[str],
        texts: Iterable[str] | None = None,
        models: Iterable[str] | None = None,
        target: str | None = None,
        **settings: Any,
    ) -> dict[str, pd.DataFrame]:
        """The tables `attributions`, `word_scores` and `certificates` over models, texts and methods."""
        rows: dict[str, list[dict[str, Any]]] = {"attributions": [], "word_scores": [], "certificates": []}
        labels, ids = list(models or self.models), list(texts or [entry.id for entry in self.study.texts])
        jobs = [(label, text, method) for label in labels for text in ids for method in methods]
        for label, text, method in progress(jobs, "explaining"):
            found = self.attribute(label, text, method, target, **settings)
            case, goal = self.case(label, text), self.target(label, text, target)
            keys = case.keys() | goal.keys() | found.keys()
            rows["attributions"] += _token_rows(keys, case, found)
            rows["word_scores"] += _word_rows(keys, case, found)
            if found.certificate is not None:
                rows["certificates"].append(keys | certificate_row(found.certificate))
        return {name: _frame(content) for name, content in rows.items()}

    def continuations(self, text: str, method: str = "integrated_gradients") -> dict[str, pd.DataFrame]:
        """Tables `continuations` (matrix continuation x input, long) and `certificates` of one text, for all models."""
        rows, proofs = [], []
        for label, model in self.models.items():
            generated = greedy(model, self.case(label, text), self.study.continuation)
            for step, (case, goal) in enumerate(progress(unrolled(model, self.case(label, text), generated), label)):
                found = self._explained(label, case, goal, method, {})
                keys = case.keys() | goal.keys() | found.keys() | {"step": step, "generated": goal.text}
                rows += [
                    keys | {"position": position, "token": token.label, "score": score}
                    for position, (token, score) in enumerate(zip(case.tokens, found.scores.tolist(), strict=True))
                ]
                if found.certificate is not None:
                    proofs.append(keys | certificate_row(found.certificate))
        return {"continuations": pd.DataFrame(rows), "certificates": pd.DataFrame(proofs)}

    def write(self, methods: Iterable[str], part: str, **settings: Any) -> dict[str, pd.DataFrame]:
        """`tables`, also written as one part of the study's data."""
        return self.store(part, self.tables(methods, **settings))

    def store(self, part: str, *runs: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """Several runs of `tables` as one, written as one part of the study's data in place of what it held."""
        joined = {name: pd.concat([run[name] for run in runs if len(run[name])] or [runs[0][name]]) for name in runs[0]}
        for name, table in joined.items():
            joined[name] = table.reset_index(drop=True)
            results.write_table(joined[name], self.study, name, part)
        return joined

    def cached_table(
        self, label: str, text: str, function: Callable[..., pd.DataFrame], **settings: Any
    ) -> pd.DataFrame:
        """The table that `function(model, case, target, **settings)` returns, from the cache where it is there."""
        model, case, goal = self.models[label], self.case(label, text), self.target(label, text)
        file = self.cache_file(model, case, goal, function, settings)
        if not file.exists():
            table = function(model, case, goal, **settings)
            results.write_text(file, table.to_json(orient="table", index=False, double_precision=15, force_ascii=False))
        return _frame(json.loads(file.read_text(encoding="utf-8"))["data"]).assign(**case.keys())


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table whose character positions are whole numbers or nothing."""
    frame = pd.DataFrame(rows)
    return frame.astype({name: "Int64" for name in ("start", "end") if name in frame})


def progress(jobs: list[Any], what: str) -> Iterator[Any]:
    """A progress bar for long work, silent in a headless run, whose runner shows its own."""
    return iter(tqdm(jobs, desc=what, disable=bool(os.environ.get("XAI_HEADLESS")) or len(jobs) < 2))


@functools.cache
def code_version(module: str) -> str:
    """Hash of a module's code, comments apart, and of all modules of this package that it takes something from.

    Reading studies and loading models is left out: what they can change is in the settings and the model's revision.
    """
    found = {name: "" for name in ("xai_utils.study", "xai_utils.models")}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        source = Path(str(sys.modules[name].__file__)).read_text(encoding="utf-8")
        found[name] = ast.dump(ast.parse(source))
        taken = (
            getattr(value, "__module__", None) or getattr(value, "__name__", "")
            for value in vars(sys.modules[name]).values()
        )
        waiting += [other for other in taken if str(other).startswith("xai_utils.") and other in sys.modules]
    return results.key(found)


def certificate_row(certificate: Certificate) -> dict[str, Any]:
    return dataclasses.asdict(certificate) | {
        "relative_delta": certificate.relative_delta,
        "converged": certificate.converged,
    }


def _token_rows(keys: dict[str, str], case: Case, found: Attribution) -> list[dict[str, Any]]:
    return [
        keys
        | {
            "position": position,
            "token": token.label,
            "start": token.start,
            "end": token.end,
            "kind": "kept" if found.sink == "kept" and math.isnan(score) and token.kind == "special" else token.kind,
            "score": score,
            "error": error,
        }
        for position, (token, score, error) in enumerate(
            zip(case.tokens, found.scores.tolist(), found.errors.tolist(), strict=True)
        )
    ]


def _word_rows(keys: dict[str, str], case: Case, found: Attribution) -> list[dict[str, Any]]:
    return [
        keys
        | {
            "word": unit.text,
            "start": unit.start,
            "end": unit.end,
            "is_word": unit.is_word,
            "pieces": len(unit.tokens),
            "score": score,
            "error": error,
            "additive": found.additive,
        }
        for unit, score, error in zip(units(case), found.word_scores.tolist(), found.word_errors.tolist(), strict=True)
    ]


def _to_json(found: Attribution) -> dict[str, Any]:
    plain = json.JSONDecoder().decode(json.dumps(dataclasses.asdict(found), default=np.ndarray.tolist))
    return dict(plain)


def _from_json(content: dict[str, Any]) -> Attribution:
    arrays = ("scores", "errors", "word_scores", "word_errors")
    content |= {name: np.array(content[name], dtype=float) for name in arrays}
    certificate = content["certificate"]
    content["certificate"] = None if certificate is None else Certificate(**certificate)
    inner = ("alphas", "values", "scores")
    content["path"] = tuple(
        Piece(**(piece | {name: np.array(piece[name]) for name in inner})) for piece in content["path"]
    )
    return Attribution(**content)
