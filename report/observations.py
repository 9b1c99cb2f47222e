"""What the tables of a study say, one function a thing: `observation(measured) -> Sentence | None`.

None means that there is nothing to say: a table is missing, or the study has no second model. Which of two directions
is said, and whether a ranking is said at all, is decided here from the tables and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from report.sentences import Sentence
from xai_utils.attribution.methods import method_name
from xai_utils.evaluation.statistics import FOUND, NONE, UNDECIDED, certified, real
from xai_utils.study.tables import IG, ORIGINAL, Measured

NAMED = 3  # words that a sentence names
MARGIN = 0.01  # nats or logits of a target, below which two models are not told apart
Facts = dict[str, Any]
Observation = Callable[[Measured], Sentence | None]


def pair_rows(measured: Measured, method: str | None = IG) -> pd.DataFrame:
    """The rows of `difference` between the base and its adapted twin; one method's, or those of all."""
    table = measured.table("difference")
    if table.empty or measured.adapted is None:
        return pd.DataFrame()
    rows = table[(table["base"] == measured.base) & (table["other"] == measured.adapted)]
    return rows if method is None else rows[rows["method"] == method]


def _recut(rows: pd.DataFrame) -> pd.Series:
    """By text, whether the two models cut one of its words into another number of pieces."""
    return (rows["pieces_base"] != rows["pieces_other"]).groupby(rows["text"]).any()


def one_model(measured: Measured) -> Sentence | None:
    if measured.adapted is not None:
        return None
    return Sentence(
        "This study holds one model, {label}. What an adaptation changed, a noise floor between two models and every "
        "claim that compares them cannot be shown from it; what follows describes {label} alone.",
        {"label": measured.base},
    )


def largest_differences(measured: Measured) -> Sentence | None:
    """The words of the first text with the largest real differences, or that there are none."""
    every = pair_rows(measured)
    if every.empty:
        return None
    rows = every[every["text"] == measured.headline]
    facts: Facts = {"text": measured.study.texts[0].text, "base": measured.base, "other": measured.adapted}
    if measured.headline not in measured.answered:
        return Sentence("“{text}” has no answer, so {base} and {other} are not compared on it.", facts)
    if rows.empty:
        return Sentence(
            "On “{text}” nothing can be said of the difference between {base} and {other}: the scores of one of them "
            "did not converge there.",
            facts,
        )
    found = rows[real(rows)].sort_values("difference", key=abs, ascending=False)
    facts["words"] = len(rows)
    if found.empty:
        return Sentence(
            "On “{text}” no word differs between {base} and {other} beyond the noise floor with a sign that all "
            "certified baselines keep; {words:#word was/words were} compared.",
            facts,
        )
    named = tuple(
        Sentence(
            "“{word}” ({base:+.2f} under {label}, {other:+.2f} under {twin}: {difference:+.2f} {unit} against a floor "
            "of {floor:.2g}; {low:+.2f} to {high:+.2f} over the baselines)",
            {
                "word": row.word,
                "label": measured.base,
                "twin": measured.adapted,
                "base": row.score_base,
                "other": row.score_other,
                "difference": row.difference,
                "floor": row.floor,
                "unit": row.unit,
                "low": row.difference_low,
                "high": row.difference_high,
            },
        )
        for row in found.head(NAMED).itertuples()
    )
    return Sentence(
        "On “{text}” {real} of {words:#word differs/words differ} between {base} and {other} beyond the error of the "
        "scores and with one sign at every certified baseline ({baselines}); the largest at {baseline}: {named}.",
        facts
        | {"real": len(found), "named": named, "baseline": measured.study.baseline}
        | {"baselines": tuple(_certified_baselines(measured, measured.headline))},
    )


def _certified_baselines(measured: Measured, text: str) -> list[str]:
    """The study's baselines at which integrated gradients converged on a text, under both models of the pair."""
    rows = measured.explained("certificates")
    rows = rows[(rows["text"] == text) & (rows["method"] == IG) & rows["model"].isin(measured.pair)]
    proven = rows[rows["sink"] == ("kept" if measured.study.keep_sink else "moved")].groupby("baseline")["converged"]
    both = {name for name, found in proven if len(found) == len(measured.pair) and found.all()}
    return [name for name in dict.fromkeys([measured.study.baseline, *measured.study.baselines]) if name in both]


def real_differences(measured: Measured) -> Sentence | None:
    """How many words differ for real over all texts, and how many could not be compared."""
    rows = pair_rows(measured)
    if rows.empty or measured.adapted is None:
        return None
    read = measured.words(IG)
    lost = int(((read["model"] == measured.base) & read["text"].isin(measured.answered)).sum()) - len(rows)
    recut = _recut(rows)
    apart, alike = rows[rows["text"].map(recut)], rows[~rows["text"].map(recut)]
    beyond = rows["beyond_floor"].astype(bool)
    facts = {
        "real": int(real(rows).sum()),
        "words": len(rows),
        "texts": rows["text"].nunique(),
        "unstable": int((beyond & rows["sign_stable"].eq(False)).sum()),
        "lost": lost,
    }
    form = (
        "Over {texts:#text/texts}, {real} of {words:#word differs/words differ} beyond the floor and with a stable sign"
    )
    if len(apart) and len(alike):
        form += (
            ": {apart} of the {recut:#word/words} in the {n:#text that is/texts that are} cut differently, {alike} of "
            "the {same:#word/words} in the others"
        )
        facts |= {"apart": int(real(apart).sum()), "recut": len(apart), "n": apart["text"].nunique()}
        facts |= {"alike": int(real(alike).sum()), "same": len(alike)}
    if facts["unstable"]:
        form += "; {unstable:#more is/more are} beyond the floor and not stable over the certified baselines"
    if single := int((beyond & rows["sign_stable"].isna()).sum()):
        facts["single"] = single
        form += "; {single:#more is/more are} beyond the floor where only one baseline is certified"
    if lost:
        form += "; {lost:#word is/words are} left out, for want of a converged score under one of the two"
    return Sentence(form + ".", facts)


def pieces(measured: Measured) -> Sentence | None:
    """Tokens a word, by language and model."""
    table = measured.table("tokenization")
    if table.empty:
        return None
    languages = {text.id: text.language or "unnamed" for text in measured.study.texts}
    table = table.assign(language=table["text"].map(languages))
    table = table.assign(tokens=table["tokens"] - table["special"])
    ratio = table.groupby(["language", "model"])[["tokens", "words"]].sum()
    parts = tuple(
        Sentence(
            "{language}: {values}",
            {
                "language": str(language),
                "values": tuple(
                    Sentence(
                        "{value:.2f} under {label}",
                        {
                            "value": ratio.loc[(language, label), "tokens"] / ratio.loc[(language, label), "words"],
                            "label": label,
                        },
                    )
                    for label in measured.labels
                    if (language, label) in ratio.index
                ),
            },
        )
        for language in ratio.index.unique("language")
    )
    return Sentence("Tokens a word, by the language of the text: {parts}.", {"parts": parts})


def convergence(measured: Measured) -> Sentence | None:
    """How many attributions of the study's own setting converged, and which did not."""
    rows = measured.chosen("certificates", IG)
    if rows.empty:
        return None
    failed = rows[~rows["converged"].astype(bool)]
    facts: Facts = {"n": len(rows), "failed": len(failed), "tolerance": measured.study.tolerance}
    facts["baseline"] = measured.study.baseline
    if failed.empty:
        return Sentence(
            "All {n} certificates of integrated gradients at the {baseline} baseline converged within {tolerance:.0%} "
            "of what they explain.",
            facts,
        )
    cases = tuple(
        Sentence(
            "“{text}” under {label} (bound {bound:.1%})", {"text": row.text, "label": row.model, "bound": row.bound}
        )
        for row in failed.itertuples()
    )
    return Sentence(
        "**{failed} of {n} certificates of integrated gradients at the {baseline} baseline did not converge** within "
        "{tolerance:.0%} and take no part in any comparison: {cases}.",
        facts | {"cases": cases},
    )


def turning_scores(measured: Measured) -> Sentence | None:
    """How many words' scores by integrated gradients have another sign at another certified baseline."""
    rows = measured.explained("word_scores")
    rows = rows[(rows["method"] == IG) & rows["is_word"].astype(bool)] if len(rows) else rows
    rows = certified(rows, measured.table("certificates")).dropna(subset="score") if len(rows) else rows
    if rows.empty:
        return None
    rows = rows[rows["model"].isin(measured.pair) & (rows["sink"] == ("kept" if measured.study.keep_sink else "moved"))]
    signs = rows.groupby(["text", "model", "start"])["score"].agg(["count", "min", "max"])
    both = signs[signs["count"] > 1]
    if both.empty:
        return None
    baselines = tuple(dict.fromkeys(rows["baseline"]))
    return Sentence(
        "A single model's score has another sign at another certified baseline ({baselines}) for {turned} of {n:#word/"
        "words}, counted once a model: of such a word no direction can be said, only how two models differ on it where "
        "that keeps its sign.",
        {"baselines": baselines, "turned": int(((both["min"] < 0) & (both["max"] > 0)).sum()), "n": len(both)},
    )


def original_setting(measured: Measured) -> Sentence | None:
    """What the original study's rule (fixed steps from zero, every position moved) leaves as its error."""
    rows = measured.explained("certificates")
    rows = rows[rows["method"] == ORIGINAL] if len(rows) else rows
    if rows.empty:
        return None
    passed = int(rows["converged"].sum())
    facts = {
        "steps": measured.study.steps,
        "n": len(rows),
        "passed": passed,
        "error": rows["relative_delta"].median(),
        "worst": rows["relative_delta"].max(),
    }
    said = "{passed} of {n} converged" if passed else "none of {n} converged"
    return Sentence(
        f"With the original's rule, {{steps}} fixed steps from a zero baseline, {said}: the median completeness error "
        "is {error:.0%} of what is explained and the largest {worst:.0%}.",
        facts,
    )


def answers(measured: Measured) -> Sentence | None:
    """Which model finds the answers likelier."""
    rows = measured.chosen("certificates", IG)
    rows = rows[(rows["target"] == "logprob") & rows["text"].isin(measured.answered)] if len(rows) else rows
    if measured.adapted is None or rows.empty:
        return None
    table = rows.pivot_table(index="text", columns="model", values="f_input")
    if not set(measured.pair) <= set(table.columns):
        return None
    both = table[measured.pair].dropna()
    change = both[measured.adapted] - both[measured.base]
    if change.empty:
        return None
    return Sentence(
        "The answer is likelier under {other} than under {base} in {up} of {n:#text/texts} and less likely in {down}, "
        "by more than {margin} {unit}; the change is {change:+.2f} in the median, {low:+.2f} to {high:+.2f}.",
        {
            "other": measured.adapted,
            "base": measured.base,
            "up": int((change > MARGIN).sum()),
            "down": int((change < -MARGIN).sum()),
            "n": len(change),
            "margin": MARGIN,
            "change": change.median(),
            "low": change.min(),
            "high": change.max(),
            "unit": rows["unit"].iloc[0],
        },
    )


def controls(measured: Measured) -> Sentence | None:
    """Mean absolute difference to the base of the adapted twin and of each control, on the words that all share."""
    table = measured.table("difference")
    if table.empty or table["other"].nunique() < 2:
        return None
    rows = table[(table["method"] == IG) & (table["base"] == measured.base)]
    sizes = rows.assign(size=rows["difference"].abs()).pivot_table(
        index=["text", "word", "start"], columns="other", values="size", dropna=False
    )
    sizes = sizes.dropna()
    if sizes.empty or len(sizes.columns) < 2:
        return None
    means = sizes.mean().sort_values(ascending=False)
    parts = tuple(Sentence("{label} {mean:.2f}", {"label": str(k), "mean": v}) for k, v in means.items())
    return Sentence(
        "Mean absolute difference to {base} a word, on the {words:#word/words} that all of them share, from the "
        "largest: {parts} {unit}.",
        {"base": measured.base, "words": len(sizes), "parts": parts, "unit": rows["unit"].iloc[0]},
    )


def tested(measured: Measured) -> Sentence | None:
    """Which questions over texts found a difference between base and twin, which did not."""
    table = measured.table("questions")
    if table.empty or measured.adapted is None:
        return None
    rows = table[table["other"] == measured.adapted]
    found, none, open_ = (rows[rows["verdict"] == verdict] for verdict in (FOUND, NONE, UNDECIDED))
    facts: Facts = {"n": len(rows), "found": len(found), "texts": int(rows["n"].max())}
    finding = "{found:#finds/find} a difference" if len(found) else "none finds a difference"
    form = "Of {n:#question/questions} put to the pair over up to {texts:#text/texts}, " + finding
    if len(found):
        form += " ({which})"
        facts["which"] = tuple(
            Sentence(
                "{asked}: {change:+.2g}, interval {low:+.2g} to {high:+.2g}",
                {"asked": row.asked, "change": row.difference, "low": row.low, "high": row.high},
            )
            for row in found.itertuples()
        )
    if len(none):
        form += "; no difference found in: {none}"
        facts["none"] = tuple(none["asked"])
    if len(open_):
        form += "; cannot be decided, for too few texts changed at all: {open}"
        facts["open"] = tuple(open_["asked"])
    return Sentence(form + ".", facts)


def quality(measured: Measured) -> Sentence | None:
    """What the adaptation gained and cost on text held out from its training, by language."""
    table = measured.table("evaluation")
    if table.empty or measured.adapted is None:
        return None
    rows = table[
        (table["label"] == measured.adapted) & (table["model"] == "trained") & (table["kind"] == "all")
    ].set_index("language")
    parts = tuple(
        Sentence(
            "{language}: {tokens:.1f} % of the tokens, and bits per character changed by {bits:+.2f} %",
            {
                "language": str(language),
                "tokens": 100 * row["tokens_of_base"],
                "bits": 100 * (row["bits_per_character_of_base"] - 1),
            },
        )
        for language, row in rows.iterrows()
    )
    form = "On text held out from its training, {other} against the model that it was made from. {parts}."
    return Sentence(form, {"other": measured.adapted, "parts": parts}) if parts else None


def between_models(measured: Measured) -> Sentence | None:
    """How alike the two models rank the words, by method."""
    rows = pair_rows(measured, None)
    rows = rows[rows["method"].isin(measured.study.methods)] if len(rows) else rows
    recut = _recut(rows) if len(rows) else pd.Series(dtype=bool)
    if recut.any():
        rows = rows[rows["text"].map(recut)]
    if rows.empty:
        return None
    values = rows.groupby(["method", "text"])[["score_base", "score_other"]].apply(
        lambda part: part["score_base"].corr(part["score_other"], method="spearman")
    )
    means = values.groupby("method").mean().dropna().sort_values(ascending=False)
    if means.empty:
        return None
    parts = tuple(Sentence("{name} {value:.2f}", {"name": method_name(str(k)), "value": v}) for k, v in means.items())
    return Sentence(
        "Rank correlation of {base} with {other} over the words of a text, averaged over the {n:#text/texts} that "
        + ("they cut differently" if recut.any() else "both read")
        + ": {parts}.",
        {"base": measured.base, "other": measured.adapted, "n": rows["text"].nunique(), "parts": parts},
    )


ALL: tuple[Observation, ...] = (
    one_model,
    largest_differences,
    real_differences,
    tested,
    controls,
    quality,
    pieces,
    answers,
    convergence,
    turning_scores,
    original_setting,
    between_models,
)
