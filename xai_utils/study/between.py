"""What differs between a study's base and another of its models, text by text: swap, bridge, adapter path, its test.

Each is computed once and kept (store.py). A text without an answer has no row here: two events cannot be subtracted.
Nor has one that is cut off under a model, or whose target is not about an answer: a line says so.
The two sides of a minimal pair are two questions: `asked_for_contrast` asks the second.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from xai_utils.attribution import adapter_path as path_of
from xai_utils.attribution import bridge as bridge_of
from xai_utils.attribution import swap as swap_of
from xai_utils.attribution.result import FLOOR
from xai_utils.attribution.tables import certificate_row
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.evaluation import layers as layers_of
from xai_utils.models import adapters
from xai_utils.models.blend import check_pair
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel, load
from xai_utils.models.sharing import share
from xai_utils.study.explainer import Explainer
from xai_utils.text.cases import Case

VERSION = (1, swap_of.VERSION, bridge_of.VERSION, path_of.VERSION, layers_of.VERSION)  # raise it as these do theirs
PAIR_KEYS = ["study", "text", "base", "other"]
REMOVED = 5  # layers in the deletion test of the adapter path's map

Tables = dict[str, pd.DataFrame]


def swaps(book: Explainer, base: str, other: str) -> Tables:
    """Tables `swap` and `bridge`: F_other - F_base shared among its parts, and taken in steps.

    None for models whose parts cannot be exchanged; a line says why.
    """
    try:
        check_pair(book.models[base], book.models[other])
    except UserError as error:
        print(error)
        return {}
    return _over_texts(book, base, other, _swap, {text: {"budget": book.study.budget} for text in _answered(book)})


def adapter_paths(book: Explainer, base: str, other: str) -> Tables:
    """Tables `adapter_path`, `adapter_path_words` and `adapter_path_certificates`.

    Raises UserError for models whose prompts or shapes differ.
    """
    return _over_texts(book, base, other, _path, {text: {} for text in _answered(book)})


def layer_deletions(book: Explainer, base: str, other: str, paths: Tables) -> pd.DataFrame:
    """Table `layer_deletion`: what undoing the adaptation in the layers that `adapter_paths` ranks highest undoes.

    Texts on which the two models differ by next to nothing are left out; the table is empty where all do.
    """
    sums = paths["adapter_path"].dropna(subset="layer").groupby(["text", "layer"])["score"].sum()
    proofs = paths["adapter_path_certificates"]
    differ = proofs[(proofs["f_input"] - proofs["f_baseline"]).abs() >= FLOOR]["text"]
    count = book.models[base].model.config.get_text_config().num_hidden_layers
    maps = {text: sums[text].reindex(range(count), fill_value=0.0).tolist() for text in differ if text in sums}
    settings = {text: {"scores": maps[text]} for text in _answered(book) if text in maps}
    return _over_texts(book, base, other, _deletion, settings).get("layer_deletion", pd.DataFrame())


def by_layer(paths: Tables) -> pd.DataFrame:
    """The maps of `adapter_paths`: the modules of a layer, or of what stands outside the layers, added up by word."""
    places = [*PAIR_KEYS, "target", "target_text", "unit", "layer", "order", "word", "start", "end"]
    summed = paths["adapter_path_words"].groupby(places, sort=False, dropna=False)["score"].sum()
    return summed.reset_index()


def layer_agreement(paths: Tables, swapped: pd.DataFrame) -> pd.Series:
    """Rank correlation of the adapter path and a swap over groups of layers, a text each (evaluation/layers.py)."""
    along, groups = (dict(list(table.groupby("text", sort=False))) for table in (paths["adapter_path"], swapped))
    return pd.Series({text: layers_of.rank_correlation(along[text], groups[text]) for text in along})


def asked_for_contrast(book: Explainer) -> Explainer:
    """The same models and texts, each asked for its contrast in place of its answer; texts without one left out."""
    exchanged = [
        text.model_copy(update={"answer": text.contrast, "contrast": text.answer})
        for text in book.study.texts
        if text.contrast is not None
    ]
    return book.on(*exchanged)


def _over_texts(
    book: Explainer,
    base: str,
    other: str,
    function: Callable[..., Tables],
    settings: Mapping[str, dict[str, Any]],
) -> Tables:
    """The function's tables of texts, each with its settings; without those on which the models cannot be compared."""
    texts = [text for text in settings if _same_question(book, text, (base, other))]
    jobs = [book.pair_job(base, other, text, function, **settings[text]) for text in texts]
    found = book.compute(jobs, function.__name__.strip("_"))
    names = list(dict.fromkeys(name for tables in found for name in tables))
    return {name: pd.concat([tables[name] for tables in found], ignore_index=True) for name in names}


def _answered(book: Explainer) -> list[str]:
    return [text.id for text in book.study.texts if text.answer is not None]


def _same_question(book: Explainer, text: str, labels: Sequence[str]) -> bool:
    """Whether the models are asked the same of a text; a line says where they are not."""
    cut = next((label for label in labels if book.case(label, text).cut), None)
    if cut is not None:
        print(f"{text}: left out, since it loses {book.case(cut, text).cut} tokens under {cut}; raise max_tokens.")
    elif book.target(labels[0], text).kind == "sum_logits":
        print(f"{text}: left out, since sum_logits is not about its answer.")
    else:
        return True
    return False


def _swap(
    base: LoadedModel,
    other: LoadedModel,
    base_case: Case,
    other_case: Case,
    base_target: Target,
    other_target: Target,
    *,
    budget: int = 1024,
) -> Tables:
    kind = base_target.kind
    found = swap_of.swap(base, other, base_case, other_case, kind, budget=budget)
    untrained = _untrained(other.entry)
    if untrained is not None:
        share([base, untrained])
    steps = bridge_of.bridge(base, other, base_case, other_case, kind, untrained=untrained)
    ends = {"f_base": found.f_base, "f_other": found.f_other}
    return {"swap": _plain(found.rows()).assign(**ends), "bridge": _plain(steps.rows())}


@functools.lru_cache(1)
def _untrained(entry: ModelEntry) -> LoadedModel | None:
    """The model with its adapter's rows as they were before training, where its recipe can make them (adapters.py)."""
    if entry.adapter is None or entry.rows is not None or not adapters.token_rows(adapters.folder(entry)):
        return None
    untrained = {"rows": "initial", "role": "control", "label": f"{entry.label}-untrained"}
    return load(entry.model_copy(update=untrained))


def _path(
    base: LoadedModel, other: LoadedModel, base_case: Case, other_case: Case, base_target: Target, other_target: Target
) -> Tables:
    kind = base_target.kind
    found = path_of.adapter_path(base, other, base_case, other_case, kind)
    proof = found.keys | certificate_row(found.certificate) | {"cancellation": found.cancellation}
    return {
        "adapter_path": _plain(found.rows()),
        "adapter_path_words": _plain(found.word_rows()),
        "adapter_path_certificates": _plain([proof]),
    }


def _deletion(
    base: LoadedModel,
    other: LoadedModel,
    base_case: Case,
    other_case: Case,
    base_target: Target,
    other_target: Target,
    *,
    scores: list[float],
) -> Tables:
    removed = max(min(REMOVED, sum(score != 0 for score in scores) - 1), 1)  # of few adapted layers all but one
    test = layers_of.layer_deletion(base, other, base_case, other_case, scores, base_target.kind, removed=removed)
    return {"layer_deletion": _plain([test.row()])}


def _plain(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows without the names of study, text and models, which who asks sets."""
    table = pd.DataFrame(rows).drop(columns=PAIR_KEYS, errors="ignore")
    return table.astype({name: "Int64" for name in ("start", "end", "layer") if name in table})
