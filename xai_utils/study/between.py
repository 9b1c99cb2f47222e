"""What differs between a study's base and another of its models, text by text: swap, bridge, adapter path, its test.

Each is computed once and kept (store.py). A text without an answer has no row here: two events cannot be subtracted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd

from xai_utils.attribution import adapter_path as path_of
from xai_utils.attribution import bridge as bridge_of
from xai_utils.attribution import swap as swap_of
from xai_utils.attribution.tables import certificate_row
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.evaluation.layers import layer_deletion
from xai_utils.models import adapters
from xai_utils.models.blend import check_pair
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import LoadedModel, load
from xai_utils.study.explainer import Explainer
from xai_utils.study.progress import progress
from xai_utils.text.cases import Case

VERSION = 1  # raise it when these tables would come out different
NAMES = ["study", "text", "base", "other"]
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
    return _over_texts(book, base, other, _swap)


def adapter_paths(book: Explainer, base: str, other: str) -> Tables:
    """Tables `adapter_path`, `adapter_path_words`, `adapter_path_certificates` and `layer_deletion`.

    Raises UserError for models whose prompts or shapes differ.
    """
    return _over_texts(book, base, other, _path)


def _over_texts(book: Explainer, base: str, other: str, function: Callable[..., Tables]) -> Tables:
    texts = [text.id for text in book.study.texts if text.answer is not None]
    book.fill(book.pair_job(base, other, text, function) for text in progress(texts, function.__name__.strip("_")))
    found = [book.pair_tables(base, other, text, function) for text in texts]
    names = list(dict.fromkeys(name for tables in found for name in tables))
    return {name: pd.concat([tables[name] for tables in found if name in tables], ignore_index=True) for name in names}


def _swap(
    base: LoadedModel, other: LoadedModel, base_case: Case, other_case: Case, base_target: Target, other_target: Target
) -> Tables:
    kind = base_target.kind
    found = swap_of.swap(base, other, base_case, other_case, kind)
    steps = bridge_of.bridge(base, other, base_case, other_case, kind, untrained=_untrained(other.entry))
    ends = {"f_base": found.f_base, "f_other": found.f_other}
    return {"swap": _plain(found.rows()).assign(**ends), "bridge": _plain(steps.rows())}


@functools.lru_cache(1)
def _untrained(entry: ModelEntry) -> LoadedModel | None:
    """The model with its adapter's rows as they were before training, where its recipe tells them (adapters.py)."""
    if entry.adapter is None or entry.rows is not None or not adapters.token_rows(adapters.folder(entry)):
        return None
    untrained = {"rows": "initial", "role": "control", "label": f"{entry.label}-untrained"}
    return load(entry.model_copy(update=untrained))


def _path(
    base: LoadedModel, other: LoadedModel, base_case: Case, other_case: Case, base_target: Target, other_target: Target
) -> Tables:
    kind = base_target.kind
    found = path_of.adapter_path(base, other, base_case, other_case, kind)
    layers = base.model.config.get_text_config().num_hidden_layers
    test = layer_deletion(base, other, base_case, other_case, found.by_layer(layers), kind, removed=REMOVED)
    proof = found.keys | certificate_row(found.certificate) | {"cancellation": found.cancellation}
    return {
        "adapter_path": _plain(found.rows()),
        "adapter_path_words": _plain(found.word_rows()),
        "adapter_path_certificates": _plain([proof]),
        "layer_deletion": _plain([test.row()]),
    }


def _plain(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows without the names of study, text and models, which who asks sets."""
    table = pd.DataFrame(rows).drop(columns=NAMES, errors="ignore")
    return table.astype({name: "Int64" for name in ("start", "end", "layer") if name in table})
