"""A study times methods gives tables: the one loop over models, texts and methods, each result kept in the store.

A method's keyword-only settings are filled from the study's keys of the same name, unless its line of METHODS fixes
them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from xai_utils.attribution import integrated_gradients
from xai_utils.attribution.absence import with_common_mean
from xai_utils.attribution.methods import method_named
from xai_utils.attribution.result import Attribution
from xai_utils.attribution.tables import certificate_row, joined, tables_of
from xai_utils.attribution.target import Target, make_target
from xai_utils.errors import UserError
from xai_utils.evaluation.behaviour import greedy, unrolled
from xai_utils.files import write_text
from xai_utils.memory import give_back
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel, load
from xai_utils.models.sharing import share
from xai_utils.notices import notice
from xai_utils.study import results
from xai_utils.study.cluster import computed
from xai_utils.study.config import Study
from xai_utils.study.jobs import Job, makers, reason
from xai_utils.study.progress import progress
from xai_utils.study.store import Result, Store
from xai_utils.text.cases import Case, prepare
from xai_utils.text.entry import TextEntry

CASES, TARGETS = 64, 1024  # kept in memory: those in work, however many texts a study has


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
        return _loaded(load, self.study.models)

    def methods(self, family: str) -> list[str]:
        """The study's methods of one family (gradients, attention, influence)."""
        return [name for name in self.study.methods if method_named(name).family == family]

    @property
    def baselines(self) -> list[str]:
        """The study's own baseline, then the others that a difference must keep its sign at."""
        return list(dict.fromkeys([self.study.baseline, *self.study.baselines]))

    def on(self, *entries: TextEntry) -> Explainer:
        """The same models and settings on texts of one's own; what it computes is cached with the rest."""
        self.models  # noqa: B018 - loaded here, for both
        other = copy.copy(self)
        other.study = self.study.model_copy(update={"texts": entries})
        for name in ("_cases", "_targets"):  # of other texts
            vars(other).pop(name, None)
        return other

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every model's label with every text's id."""
        return [(label, entry.id) for label in self.models for entry in self.study.texts]

    def case(self, label: str, text: str) -> Case:
        return self._cases(label, text)

    def target(self, label: str, text: str, kind: str | None = None) -> Target:
        return self._targets(label, text, kind)

    @functools.cached_property
    def _cases(self) -> Callable[[str, str], Case]:
        """Kept here: a cache of the class would keep every Explainer with its models."""
        return functools.lru_cache(CASES)(
            lambda label, text: prepare(self.models[label], self._entry(text), self.study, self.study.name)
        )

    @functools.cached_property
    def _targets(self) -> Callable[[str, str, str | None], Target]:
        def made(label: str, text: str, kind: str | None) -> Target:
            kind = kind or self._entry(text).target or self.study.target
            return make_target(self.models[label], self.case(label, text), kind)

        return functools.lru_cache(TARGETS)(made)

    def _entry(self, text: str) -> Any:
        return next(entry for entry in self.study.texts if entry.id == text)

    @property
    def kept(self) -> Store:
        """Where results are kept."""
        return Store(self.folders.cache)

    def attribute(self, label: str, text: str, method: str, target: str | None = None, **settings: Any) -> Attribution:
        """One attribution, from the store when the same thing was computed before."""
        return self._read(self._method(method, label, text, target, settings))

    def cached_table(
        self, label: str, text: str, function: Callable[..., pd.DataFrame], **settings: Any
    ) -> pd.DataFrame:
        """The table that `function(model, case, target, **settings)` gives, behind the case's keys, from the store."""
        return self._read(self.job(label, text, function, **settings))

    def _read(self, job: Job) -> Any:
        return self.compute([job])[0]

    def compute(self, jobs: Sequence[Job], what: str = "") -> list[Any]:
        """The results of jobs, from the store where they are there; `what` names them on the progress line.

        Raises UserError as `fill` does.
        """
        self.fill(progress(jobs, what) if what else jobs)
        return [job.result() for job in jobs]

    def _method(self, method: str, label: str, text: str, target: str | None, settings: Mapping[str, Any]) -> Job:
        return self._explaining(method, self.case(label, text), self.target(label, text, target), settings)

    def settings(self, method: str) -> dict[str, Any]:
        """A method's keyword-only settings: those that its line of the table fixes, and the study's for the others."""
        line = method_named(method)
        return {name: getattr(self.study, name) for name in line.settings if hasattr(self.study, name)} | line.fixed

    def _explaining(self, method: str, case: Case, goal: Target, settings: Mapping[str, Any]) -> Job:
        return self._job(method, method_named(method).function, [case], [goal], self.settings(method) | dict(settings))

    def job(self, label: str, text: str, function: Callable[..., Result], **settings: Any) -> Job:
        """`function(model, case, target, **settings)` of a case, for `compute`: an attribution, or a table."""
        return self._job(_name(function), function, [self.case(label, text)], [self.target(label, text)], settings)

    def pair_job(self, base: str, other: str, text: str, function: Callable[..., Result], **settings: Any) -> Job:
        """Named tables of two models on one text, for `compute`, behind the keys study, text, base and other.

        `function(base model, other model, base case, other case, base target, other target, **settings)` makes them.
        """
        cases = [self.case(label, text) for label in (base, other)]
        targets = [self.target(label, text) for label in (base, other)]
        return self._job(_name(function), function, cases, targets, settings)

    def _job(
        self,
        name: str,
        function: Callable[..., Any],
        cases: Sequence[Case],
        targets: Sequence[Target],
        settings: Mapping[str, Any],
    ) -> Job:
        models = [self.models[case.model] for case in cases]
        file = self.kept.file([models, cases, targets, function, complete(function, settings)])
        made = tuple(makers(model, function) for model in models)
        entries, references = tuple(model.entry for model in models), tuple(model.reference for model in models)
        return Job(name, function, entries, references, tuple(cases), tuple(targets), file, made, settings)

    def fill(self, jobs: Iterable[Job]) -> None:
        """Compute what is not kept yet, here or on a cluster; a case that fails does not stop the others.

        Raises UserError, which names the cases that failed; a single case's error is raised as it is.
        """
        asked, failed, begun = 0, list[tuple[Job, Exception]](), set[Path]()

        def missing() -> Iterator[Job]:
            nonlocal asked
            for job in jobs:
                asked += 1
                if job.file not in begun and not job.file.exists():
                    begun.add(job.file)
                    yield job

        for job, outcome in computed(missing(), self.models):
            if isinstance(outcome, Exception):
                failed.append((job, outcome))
                notice(f"failed: {job}: {reason(outcome)}")
            else:
                write_text(job.file, outcome)
        if failed and asked == 1:
            raise failed[0][1]
        if failed:
            raise UserError(_failures(failed, asked)) from failed[0][1]

    def tables(
        self,
        methods: Iterable[str],
        texts: Iterable[str] | None = None,
        models: Iterable[str] | None = None,
        target: str | None = None,
        **settings: Any,
    ) -> dict[str, pd.DataFrame]:
        """The tables `attributions`, `word_scores` and `certificates` over models, texts and methods.

        Raises UserError for an unknown method and for a text that cannot be explained before anything is computed.
        """
        labels, names = list(models or self.models), list(methods)
        ids = list(texts or [entry.id for entry in self.study.texts])
        jobs = [self._method(name, label, text, target, settings) for label in labels for text in ids for name in names]
        return tables_of(self.compute(jobs, "explaining"))

    def continuations(self, text: str, method: str = "integrated_gradients") -> dict[str, pd.DataFrame]:
        """Tables `continuations` (matrix continuation x input, long) and `certificates` of one text, for all models."""
        rows, proofs = [], []
        for label, model in self.models.items():
            generated = greedy(model, self.case(label, text), self.study.continuation)
            prompts = unrolled(model, self.case(label, text), generated)
            asked = [self._explaining(method, case, goal, {}) for case, goal in prompts]
            for step, (job, found) in enumerate(zip(asked, self.compute(asked, label), strict=True)):
                keys = found.keys() | {"step": step, "generated": job.target.text}
                rows += [
                    keys | {"position": position, "token": token.label, "score": score}
                    for position, (token, score) in enumerate(zip(job.case.tokens, found.scores.tolist(), strict=True))
                ]
                if found.certificate is not None:
                    proofs.append(keys | certificate_row(found.certificate))
        return {"continuations": pd.DataFrame(rows), "certificates": pd.DataFrame(proofs)}

    def write(self, methods: Iterable[str], part: str) -> dict[str, pd.DataFrame]:
        """`tables`, written as one part of the study's data."""
        return self.store(part, self.tables(methods))

    def store(self, part: str, *runs: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """Several runs of `tables` as one, written as one part of the study's data in place of what it held."""
        tables = joined(list(runs))
        for name, table in tables.items():
            results.write_table(table, self.study, name, part)
        return tables

    def fixed_with_path(self, label: str, text: str) -> Attribution:
        """The original's fixed steps with their path, from the store where they are there."""
        walked = self._read(self.job(label, text, integrated_gradients.fixed_path, steps=self.study.steps))
        return dataclasses.replace(self.attribute(label, text, "fixed_steps"), path=walked.path)


_held: dict[Any, dict[str, LoadedModel]] = {}  # the models of one study


def _loaded(loader: Callable[[ModelEntry], LoadedModel], entries: tuple[ModelEntry, ...]) -> dict[str, LoadedModel]:
    """The models of a study, held until another study's are asked for: the next notebook of a process loads nothing."""
    key = (loader, entries, tuple(tuple(entry.stamp()) for entry in entries))
    if key not in _held:
        _held.clear()
        give_back()  # before others take their memory
        models: list[LoadedModel] = []
        for entry in progress(entries, "loading"):
            models.append(loader(entry))
            share(models)
        _held[key] = {model.label: model for model in with_common_mean(models)}
    return _held[key]


def complete(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """All keyword-only settings of a function: those given, and its own defaults for the others."""
    kinds = inspect.signature(function).parameters.values()
    own = {kind.name: kind.default for kind in kinds if kind.kind is kind.KEYWORD_ONLY}
    return {name: value for name, value in own.items() if value is not inspect.Parameter.empty} | dict(settings)


def _name(function: Callable[..., Any]) -> str:
    return function.__name__.strip("_")


def _failures(failed: list[tuple[Job, Exception]], asked: int) -> str:
    """One line on the cases that failed: what each reason hit."""
    reasons: dict[str, list[str]] = {}
    for job, error in failed:
        reasons.setdefault(reason(error), []).append(str(job))
    each = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    return f"{len(failed)} of {asked} cases failed: {each}; the others are kept: fix this and run again"
