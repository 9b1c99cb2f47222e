"""What notebook 03 computes for a whole study: statistics of all heads, groups, rollout, changes between models.

The measures are those of layers.py, heads.py, rollout.py and attention_words.py; here they are put to all cases of a
study and cached by content.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from xai_utils.attention import heads, layers, maps
from xai_utils.attention.words import WordAttention, attention_change, word_attention
from xai_utils.attribution import rollout
from xai_utils.attribution.target import Target
from xai_utils.errors import UserError
from xai_utils.models.loading import LoadedModel
from xai_utils.study.explainer import Explainer
from xai_utils.study.jobs import Job
from xai_utils.text.cases import Case, prepare
from xai_utils.text.entry import TextEntry

VERSION = 1  # raise it when these tables would come out different
HALF = 0.5
KEYS = ["study", "text", "model", "role"]
GROUPED = ["study", "model", "role", "layer", "head", *heads.PLACES, "group", "share", "example"]
NOTICEABLE = 0.01  # nats: less attention than a seventh has moved then (Pinsker's inequality)
IDENTICAL = 1e-9  # nats; two runs of one model on the same tokens differ by nothing


def head_statistics(book: Explainer) -> pd.DataFrame:
    """Table `attention_heads`: every head of every case."""
    found = book.compute([book.job(*case, _head_table) for case in book.pairs], "attending")
    table = pd.concat(found, ignore_index=True)
    for name in table.columns[table.columns.str.endswith(layers.STATISTICS)]:
        table[name] = table[name].astype(float)
    return table


def first_head(book: Explainer) -> pd.DataFrame:
    """What the original study says of layer 0, head 0, as numbers, a row a case; texts of one token left out."""
    long = [case for case in book.pairs if len(book.case(*case).tokens) > 1]
    found = book.compute([book.job(*case, _first_head) for case in long])
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=KEYS)


def grouped_heads(book: Explainer, table: pd.DataFrame) -> pd.DataFrame:
    """Every head's group, a row a head and model, over all texts in `table` (rows of `attention_heads`).

    A model under which no text is long enough has no rows, and a line says so.
    """
    found = []
    for label, model in book.models.items():
        probed = book.cached_table(label, book.study.texts[0].id, _induction, seed=book.study.seed)
        scores = probed.pivot(index="layer", columns="head", values="induction").to_numpy()
        try:
            rows = heads.group_heads(table[table["model"] == label], scores)
        except UserError as error:
            print(f"{label}: {error}")
            continue
        found.append(pd.concat([pd.DataFrame([_keys(book, model)] * len(rows)), rows], axis=1))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=GROUPED).astype({"example": bool})


def group_counts(groups: pd.DataFrame) -> pd.DataFrame:
    """How many heads each group has: a row a group, a column a model; empty without groups."""
    if groups.empty:
        return pd.DataFrame(columns=["group"])
    counts = groups.groupby(["group", "model"], sort=False).size().unstack(fill_value=0)
    return counts.reindex(list(heads.GROUPS), fill_value=0)[list(groups["model"].unique())].reset_index()


def group_examples(
    book: Explainer, groups: pd.DataFrame, label: str
) -> dict[str, tuple[Float[np.ndarray, "query key"], Sequence[str]]]:
    """A map of each group's example on the study's first text, pooled if long; of the induction head on the probe."""
    model = book.models[label]
    case = book.case(label, book.study.texts[0].id)
    every, labels = maps.maps(model, case), maps.map_labels(case)
    probe = heads.probe_ids(model, book.study.seed)
    rows = groups[(groups["model"] == label) & groups["example"]]
    chosen = {row["group"]: (row["layer"], row["head"]) for row in rows.to_dict("records")}
    found: dict[str, tuple[Float[np.ndarray, "query key"], Sequence[str]]] = {}
    for group in (name for name in heads.GROUPS if name in chosen):
        layer, head = chosen[group]
        name = f"{group}: layer {layer}, head {head}"
        if group == "induction":
            found[f"{name}, probe text"] = (
                maps.head_map(model, probe, layer, head),
                model.tokenizer.batch_decode([[index] for index in probe]),
            )
        else:
            found[name] = every[layer, head], labels
    return found


def drifts(book: Explainer) -> pd.DataFrame:
    """Table `attention_rollout`: rollout's mass on the first position, by layer, of every case."""
    jobs = [book.job(*case, _drift) for case in book.pairs]
    return pd.concat(book.compute(jobs, "rolling out"), ignore_index=True)


def alike(book: Explainer, base: str) -> list[str]:
    """The other models that can be compared with the base head by head; a line says which cannot, and why."""
    shapes = {label: _shape(model) for label, model in book.models.items()}
    for label in (label for label in shapes if shapes[label] != shapes[base]):
        print(f"{label} has {shapes[label]} and {base} {shapes[base]}: they are not compared head by head.")
    return [label for label in shapes if label != base and shapes[label] == shapes[base]]


def _shape(model: LoadedModel) -> str:
    config = model.model.config.get_text_config()
    return f"{config.num_hidden_layers} layers of {config.num_attention_heads} heads"


def changes(book: Explainer, base: str, other: str) -> pd.DataFrame:
    """Table `attention_change`: what differs between two models' heads on every text, beside the floor."""
    found = book.compute([_change_job(book, base, other, entry) for entry in book.study.texts], other)
    return pd.concat([tables["attention_change"] for tables in found], ignore_index=True)


def joined(found: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables of several models as one; without a second model an empty one with the same columns."""
    columns = ["study", "text", "base", "other", "layer", "head", "divergence", "shared", "floor", "beyond_floor"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def change_of_heads(change: pd.DataFrame) -> pd.DataFrame:
    """`attention_change` over texts, a row a head: means, and whether it changed: beyond the floor in most texts with
    one, and by no less than NOTICEABLE on the mean.

    Texts that the two models read alike to the last digit say nothing of where they differ: they are left out and
    counted in `alike`, unless there are no others.
    """
    differs = change.groupby("text")["divergence"].transform("max") > IDENTICAL
    alike = change.loc[~differs, "text"].nunique()
    table = (change[differs] if differs.any() else change).astype({"beyond_floor": "Float64"})
    means = table.groupby(["base", "other", "layer", "head"], as_index=False)[
        ["divergence", "shared", "floor", "beyond_floor"]
    ].mean()
    means["texts"] = table.groupby(["base", "other", "layer", "head"])["beyond_floor"].count().to_numpy()
    changed = (means["beyond_floor"] > HALF) & (means["divergence"] >= NOTICEABLE)
    return means.assign(beyond_floor=changed, alike=alike if differs.any() else 0)


def words_of(book: Explainer, label: str, entry: TextEntry) -> WordAttention:
    """Attention between the words of one of the study's texts, or of a rewording put in its place."""
    model = book.models[label]
    return word_attention(model, prepare(model, entry, book.study, book.study.name))


def _change_job(book: Explainer, base: str, other: str, entry: TextEntry) -> Job:
    reworded = [entry.model_copy(update={"text": rewording}) for rewording in entry.rewordings]
    again = [tuple(prepare(book.models[label], text, book.study) for label in (base, other)) for text in reworded]
    return book.pair_job(base, other, entry.id, _change, again=again)


def _keys(book: Explainer, model: LoadedModel) -> dict[str, str]:
    return {"study": book.study.name, "model": model.label, "role": model.role}


# ---- one case each, as the cache takes them


def _head_table(model: LoadedModel, case: Case, target: Target) -> pd.DataFrame:
    return layers.head_table(model, case)


def _first_head(model: LoadedModel, case: Case, target: Target) -> pd.DataFrame:
    kept: list[layers.Layer] = []
    layers.stream(model, case.ids, lambda layer: None if kept else kept.append(layer))
    return pd.DataFrame([case.keys() | layers.observations(kept[0].weights[0])])


def _drift(model: LoadedModel, case: Case, target: Target) -> pd.DataFrame:
    return rollout.drift(model, case)


def _change(
    base: LoadedModel,
    other: LoadedModel,
    base_case: Case,
    other_case: Case,
    base_target: Target,
    other_target: Target,
    *,
    again: Sequence[tuple[Case, Case]],
) -> dict[str, pd.DataFrame]:
    first, *floors = [
        (word_attention(base, one), word_attention(other, two)) for one, two in [(base_case, other_case), *again]
    ]
    table = attention_change(*first, floors).astype({"beyond_floor": "boolean", "shared": float, "floor": float})
    return {"attention_change": table}


def _induction(model: LoadedModel, case: Case, target: Target, *, seed: int) -> pd.DataFrame:
    scores = heads.induction(model, seed)
    layer, head = np.indices(scores.shape)
    return pd.DataFrame({"layer": layer.ravel(), "head": head.ravel(), "induction": scores.ravel()})
