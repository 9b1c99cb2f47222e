"""What the tables of notebook 03 say, one function a thing: rows -> Sentence, or None where there is nothing to say."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from report.sentences import Sentence
from xai_utils.attention.heads import GROUPS

HALF = 0.5
LOOKS = {
    "induction": "follow repeated tokens",
    "sink": "rest on the first position",
    "previous": "look at the token before",
    "local": "look at the last four positions",
    "broad": "look far and wide",
}


def first_head(rows: pd.DataFrame, text: str, labels: Sequence[str]) -> Sentence | None:
    """The original's observations on layer 0, head 0, measured on one text."""
    found = rows[(rows["text"] == text) & rows["model"].isin(labels)]
    parts = tuple(
        Sentence(
            "under {label} the positions behind the first give it {sink:.0%} of their attention ({majority:.0%} of "
            "them more than half) and {own:.2f} on average to themselves ({least:.2f} to {most:.2f}); its entropy is "
            "{entropy:.2f} nats where attention that does not choose has {uniform:.2f}, and the last four positions "
            "get {local:.0%} where that gives them {plain:.0%}",
            {
                "label": row["model"],
                "sink": row["sink"],
                "majority": row["sink_majority"],
                "own": row["diagonal_mean"],
                "least": row["diagonal_min"],
                "most": row["diagonal_max"],
                "entropy": row["entropy"],
                "uniform": row["uniform_entropy"],
                "local": row["local"],
                "plain": row["uniform_local"],
            },
        )
        for row in found.to_dict("records")
    )
    return Sentence("In the first head of the first layer {parts}.", {"parts": parts}) if parts else None


def groups(table: pd.DataFrame, labels: Sequence[str]) -> Sentence | None:
    """How many heads do what, by model."""
    parts = []
    for label in labels:
        counts = table[table["model"] == label]["group"].value_counts()
        kinds = tuple(
            Sentence("{k} {look}", {"k": int(counts[group]), "look": LOOKS[group]})
            for group in GROUPS
            if group in counts
        )
        if kinds:
            facts = {"n": int(counts.sum()), "label": label, "kinds": kinds}
            parts.append(Sentence("of the {n} heads of {label}, {kinds}", facts))
    form = "Grouped by the place that takes half of the attention it could take beyond an even spread: {parts}."
    return Sentence(form, {"parts": tuple(parts)}) if parts else None


def contributions(table: pd.DataFrame, labels: Sequence[str]) -> Sentence | None:
    """The first position's share of the weights beside its share of what is moved, means over heads and texts."""
    parts = []
    for label in labels:
        rows = table[table["model"] == label][["sink", "norm_sink"]].dropna()
        if len(rows):
            less = float((rows["norm_sink"] < rows["sink"]).mean())
            facts = {"label": label, "mass": rows["sink"].mean(), "moved": rows["norm_sink"].mean(), "less": less}
            form = (
                "under {label} {mass:.0%} of the weight and {moved:.0%} of what is moved (less in {less:.0%} of heads)"
            )
            parts.append(Sentence(form, facts))
    if not parts:
        return None
    return Sentence("The first position gets, on average over heads and texts, {parts}.", {"parts": tuple(parts)})


def drift(table: pd.DataFrame, labels: Sequence[str]) -> Sentence | None:
    """After how many layers rollout has half its mass on the first position, beside attention that does not choose."""
    means = (
        table[table["model"].isin(labels)]
        .groupby(["model", "layer"], as_index=False)[["rollout", "rollout_uniform"]]
        .mean()
    )
    parts = []
    for label in labels:
        rows = means[means["model"] == label]
        if rows.empty:
            continue
        last = rows.iloc[-1]
        facts = {
            "label": label,
            "end": last["rollout"],
            "plain": last["rollout_uniform"],
            "half": int((rows["rollout"] < HALF).sum()) + 1,
            "late": int((rows["rollout_uniform"] < HALF).sum()) + 1,
        }
        reached = min(last["rollout"], last["rollout_uniform"]) >= HALF
        parts.append(
            Sentence(
                "under {label} {end:.1%} at the end against {plain:.1%} for attention that does not choose"
                + (", half of it after {half:#layer/layers} against {late}" if reached else ""),
                facts,
            )
        )
    if not parts:
        return None
    return Sentence("Rollout puts on the first position, on average, {parts}.", {"parts": tuple(parts)})


def change(heads: pd.DataFrame) -> Sentence | None:
    """How many heads an adaptation changed beyond the floor, out of `change_of_heads`, and which one most."""
    if heads.empty:
        return None
    top = heads.nlargest(1, "divergence").iloc[0]
    facts = {
        "base": top["base"],
        "other": top["other"],
        "n": len(heads),
        "layer": int(top["layer"]),
        "head": int(top["head"]),
        "value": float(top["divergence"]),
    }
    largest = "the largest mean divergence is that of layer {layer}, head {head} ({value:.2g} nats)"
    if heads["floor"].isna().all():
        form = "{base} and {other} were compared in {n} heads; no text has a rewording, so there is no floor; "
        return Sentence(form + largest + ".", facts)
    beyond = heads[heads["beyond_floor"].fillna(False).astype(bool)]
    facts |= {"k": len(beyond), "shared": float(heads["shared"].mean())}
    facts |= {"floor": float(heads["floor"].mean()), "texts": int(heads["texts"].max()), "alike": int(top["alike"])}
    form = (
        "{k} of {n} heads look elsewhere under {other} than under {base} by more than rewording a text makes them, in "
        "most of {texts:#text/texts}"
    )
    form += " that the two read differently ({alike:#other reads/others read} alike)" if facts["alike"] else ""
    if len(beyond):
        form += ", half of these by less than {median:.2g} nats"
        facts["median"] = float(beyond["divergence"].median())
    form += (
        "; on average the models differ by {shared:.2g} nats on the words that text and rewording share, and rewording "
        "changes {floor:.2g}; "
    )
    return Sentence(form + largest + ".", facts)
