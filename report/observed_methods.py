"""What the tables say of methods and of attention, one function a thing: `observation(measured) -> Sentence | None`."""

from __future__ import annotations

import pandas as pd

from report import observed_attention as attention
from report.observations import Observation
from report.sentences import Sentence
from xai_utils.attribution.methods import method_name
from xai_utils.study.attention import change_of_heads
from xai_utils.study.tables import IG, Measured

HALF = 0.5
SHAPLEY = ("shapley", "kernel_shap")  # two ways to one quantity, whose agreement says nothing


def highest_words(measured: Measured) -> Sentence | None:
    """The word of the first text that each method ranks highest, by model."""
    parts = []
    for label in measured.pair:
        tops = []
        for method in measured.study.methods:
            rows = measured.certified("word_scores", method)
            if len(rows):
                rows = rows[rows["is_word"] & (rows["model"] == label) & (rows["text"] == measured.headline)]
            rows = rows.dropna(subset="score") if len(rows) else rows
            if len(rows):
                top = rows.sort_values("score").iloc[-1]
                facts = {"word": top["word"], "score": top["score"], "unit": top["unit"], "method": method_name(method)}
                tops.append(Sentence("“{word}” by {method} ({score:.3g} {unit})", facts))
        if tops:
            parts.append(Sentence("under {label} {tops}", {"label": label, "tops": tuple(tops)}))
    if not parts:
        return None
    return Sentence("Highest on “{text}”: {parts}.", {"text": measured.study.texts[0].text, "parts": tuple(parts)})


def closest_methods(measured: Measured) -> Sentence | None:
    """Which two methods rank words most alike, and which least, in rank correlation over texts and models."""
    table = measured.table("agreement")
    if table.empty:
        return None
    rows = table[table["model"].isin(measured.pair) & (table["method_a"] != table["method_b"])]
    rows = rows[~rows[["method_a", "method_b"]].isin(SHAPLEY).all(axis=1)]
    means = rows.groupby(["method_a", "method_b"])["spearman"].mean().dropna().sort_values()
    if means.empty:
        return None
    (first, second), (low_a, low_b) = means.index[-1], means.index[0]
    facts = {"a": method_name(first), "b": method_name(second), "high": means.iloc[-1]}
    if len(means) == 1:
        return Sentence("The ranks of {a} and {b} correlate by {high:.2f} on average.", facts)
    facts |= {"c": method_name(low_a), "d": method_name(low_b), "low": means.iloc[0]}
    return Sentence(
        "Of all methods that compute different things {a} and {b} rank the words most alike (a rank correlation of "
        "{high:.2f} on average), {c} and {d} least ({low:.2f}).",
        facts,
    )


def deletion_tests(measured: Measured) -> pd.DataFrame:
    """The table `faithfulness` in the study's own setting: a row a model, text, method and deletion baseline."""
    table = measured.table("faithfulness")
    if table.empty:
        return table
    own = [measured.chosen("faithfulness", method) for method in table["method"].unique()]
    rows = pd.concat([part for part in own if len(part)])
    return rows[rows["comprehensiveness_beats_random"].notna() & rows["model"].isin(measured.pair)]


def faithful(measured: Measured) -> Sentence | None:
    """The method whose words matter most when they are put at the study's first deletion baseline, a model."""
    rows = deletion_tests(measured)
    rows = rows[rows["deletion"] == measured.study.deletions[0]] if len(rows) else rows
    parts = []
    for label in measured.pair if len(rows) else []:
        means = rows[rows["model"] == label].groupby("method")["comprehensiveness"].mean()
        ranked = means[means.index.isin(measured.study.methods)]
        if ranked.empty:
            continue
        best = rows[(rows["model"] == label) & (rows["method"] == ranked.idxmax())]
        facts = {
            "label": label,
            "method": method_name(str(ranked.idxmax())),
            "drop": best["comprehensiveness"].mean(),
            "random": best["comprehensiveness_random"].mean(),
            "unit": measured.target_unit,
            "k": int(best["comprehensiveness_beats_random"].sum()),
            "n": len(best),
        }
        form = (
            "under {label} in that of {method}, by {drop:.2f} {unit} against {random:.2f} in random orders, beyond the "
            "95th percentile of these in {k} of {n:#test/tests}"
        )
        if means.idxmax() not in measured.study.methods:
            form += " (no method does better than {control}, an order by position alone: {most:.2f})"
            facts |= {"control": method_name(str(means.idxmax())), "most": means.max()}
        parts.append(Sentence(form.replace("95th", "{level}th"), facts | {"level": 95}))
    if not parts:
        return None
    return Sentence(
        "With words put at {deletion}, the target falls most in one order: {parts}.",
        {"deletion": measured.study.deletions[0], "parts": tuple(parts)},
    )


def unfaithful(measured: Measured) -> Sentence | None:
    """Methods that beat random orders in no more than half of their tests, or that there are none."""
    rows = deletion_tests(measured)
    rows = rows[rows["method"].isin(measured.study.methods)] if len(rows) else rows
    if rows.empty:
        return None
    beats = rows.groupby("method", sort=False)["comprehensiveness_beats_random"].agg(["sum", "size"])
    weak = beats[beats["sum"] <= beats["size"] * HALF].sort_values("sum", kind="stable")
    if weak.empty:
        return Sentence(
            "All {n} methods beat random orders in more than half of their deletion tests.", {"n": len(beats)}
        )
    parts = tuple(
        Sentence("{name} ({k} of {n})", {"name": method_name(str(name)), "k": int(k), "n": int(n)})
        for name, k, n in weak.itertuples()
    )
    return Sentence(
        "{weak} of {n} methods beat random orders in no more than half of their deletion tests: {parts}.",
        {"weak": len(weak), "n": len(beats), "parts": parts},
    )


def outranked(measured: Measured) -> Sentence | None:
    """How many methods an order of the words by position alone outranks, a model and deletion baseline."""
    board = measured.table("leaderboard")
    parts, behind = [], []
    for deletion in measured.study.deletions if len(board) else ():
        for label in measured.pair:
            ranks = board[(board["deletion"] == deletion) & (board["model"] == label)].set_index("method")["mean_rank"]
            methods = ranks[ranks.index.isin(measured.study.methods)]
            controls = ranks.drop(methods.index).dropna()
            if methods.empty or controls.empty:
                continue
            worse = methods > controls.min()
            behind.append(bool(worse.get(IG, False)))
            facts = {"k": int(worse.sum()), "n": len(methods), "label": label, "deletion": deletion}
            parts.append(Sentence("{k} of {n} methods under {label} with words put at {deletion}", facts))
    if not parts:
        return None
    return Sentence(
        "By mean rank an order of the words by position alone stands before {parts}; integrated gradients are among "
        "these in {behind} of {n:#list/lists}.",
        {"parts": tuple(parts), "behind": sum(behind), "n": len(behind)},
    )


def sinks(measured: Measured) -> Sentence | None:
    """How many heads give most of their attention to the first position."""
    table = measured.table("attention_heads")
    if table.empty:
        return None
    means = table[table["model"].isin(measured.pair)].groupby(["model", "layer", "head"])["sink"].mean()
    parts = tuple(
        Sentence(
            "{k} of {n} heads under {label}",
            {"k": int((means[label] > HALF).sum()), "n": len(means[label]), "label": label},
        )
        for label in measured.pair
    )
    return Sentence("More than half of the attention goes to the first position in {parts}.", {"parts": parts})


def first_head(measured: Measured) -> Sentence | None:
    """The original's head on the first text."""
    table = measured.table("attention_first_head")
    return None if table.empty else attention.first_head(table, measured.headline, measured.pair)


def head_groups(measured: Measured) -> Sentence | None:
    """How many heads do what."""
    table = measured.table("attention_groups")
    return None if table.empty else attention.groups(table, measured.pair)


def moved_by_attention(measured: Measured) -> Sentence | None:
    """What attention on the first position moves, where value norms are known."""
    table = measured.table("attention_heads")
    return None if "norm_sink" not in table else attention.contributions(table, measured.pair)


def changed_heads(measured: Measured) -> Sentence | None:
    """How many heads the adaptation changed beyond the floor."""
    table = measured.table("attention_change")
    rows = table[table["other"] == measured.adapted] if len(table) else table
    return None if rows.empty else attention.change(change_of_heads(rows))


ALL: tuple[Observation, ...] = (
    *(highest_words, closest_methods, faithful, unfaithful, outranked),
    *(sinks, first_head, head_groups, moved_by_attention, changed_heads),
)
