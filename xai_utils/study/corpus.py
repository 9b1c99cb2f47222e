"""The original's claims over a corpus, from tables alone: one number a text and model, then one test a question.

The two texts of a translation pair are one observation. p values are corrected over all questions put to the pair in
the study's own setting, and apart from them over those put to the controls and at other baselines, on fewer texts
(Benjamini and Hochberg 1995). Scores without a converged certificate take no part. Nothing here loads a model.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from report.original import AGREE, EVEN, FIRST, LESS, MARK, MARKS
from xai_utils.evaluation.agreement import LEAST, agreement
from xai_utils.evaluation.statistics import (
    CASE,
    FOUND,
    LEVEL,
    NONE,
    RESOLUTION,
    UNDECIDED,
    certified,
    corrected,
    differences,
    paired_test,
    real,
    spread,
)
from xai_utils.study.evidence_tables import PLACE
from xai_utils.study.tables import IG

Tables = Mapping[str, pd.DataFrame]
HOLDS, FAILS, OPPOSITE = "holds", "does not hold", "the opposite holds"


# ---- one number a text and model


def is_punctuation(word: str) -> bool:
    """
    >>> is_punctuation("?"), is_punctuation("—"), is_punctuation("don't"), is_punctuation("8")
    (True, True, False, False)
    """
    return all(unicodedata.category(character)[0] in "PS" for character in word)


def _shares(words: pd.DataFrame) -> pd.DataFrame:
    """Signed share of each word in the absolute importance of its text."""
    total = words.groupby(PLACE)["score"].transform(lambda scores: scores.abs().sum())
    return words.assign(share=words["score"] / total.where(total > 0))


def _mean(words: pd.DataFrame, chosen: pd.Series) -> pd.Series:
    return _shares(words)[chosen].groupby(PLACE)["share"].mean()


def _question_mark(words: pd.DataFrame) -> pd.Series:
    return _mean(words, words["word"] == "?")


def _other_marks(words: pd.DataFrame) -> pd.Series:
    return _mean(words, words["word"].map(is_punctuation).astype(bool) & (words["word"] != "?"))


def _negative(words: pd.DataFrame) -> pd.Series:
    return -_shares(words).groupby(PLACE)["share"].agg(lambda shares: shares.clip(upper=0).sum())


def _spread(kind: str) -> Callable[[pd.DataFrame], pd.Series]:
    return lambda words: words.groupby(PLACE)["score"].agg(lambda scores: spread(scores)[kind])


def _pieces(words: pd.DataFrame) -> pd.Series:
    return words.groupby(PLACE)["pieces"].mean()


OF_WORDS: dict[str, tuple[str, Callable[[pd.DataFrame], pd.Series]]] = {
    "entropy": (IG, _spread("entropy")),
    "gini": (IG, _spread("gini")),
    "negative": (IG, _negative),
    "pieces": (IG, _pieces),
    "question_mark": (IG, _question_mark),
    "question_mark_ablation": ("ablation", _question_mark),
    "other_marks": (IG, _other_marks),
    "other_marks_ablation": ("ablation", _other_marks),
}


def measures(tables: Tables, baseline: str) -> pd.DataFrame:
    """One number a question, text, model, baseline and sink: long, from `word_scores`, `attributions`, `certificates`.

    The order of the words and what is no word play no part; scores that did not converge are left out.
    """
    scores, proofs = tables["word_scores"], tables["certificates"]
    words = certified(scores[scores["is_word"].astype(bool)], proofs).dropna(subset="score")
    words = words[words["sink"] == "kept"]
    found = {name: ask(words[words["method"] == method]) for name, (method, ask) in OF_WORDS.items()}
    found["first_position"] = first_position(tables["attributions"], proofs)
    found["answer"] = _answer(proofs[proofs["sink"] == "kept"])
    main = words[(words["baseline"] == baseline) | (words["method"] == "attention")]
    found["cut"] = cut_effect(main)
    for other in ("ablation", "attention"):
        found[f"agreement_{other}"] = _agreement(main, proofs, baseline, other)
    frames = [
        values.rename("value").reset_index().assign(measure=name) for name, values in found.items() if len(values)
    ]
    return pd.concat(frames, ignore_index=True)[["measure", *PLACE, "value"]].dropna(subset="value")


def _answer(certificates: pd.DataFrame) -> pd.Series:
    """Log-probability of the answer in nats a character, which two vocabularies share."""
    rows = certificates[certificates["target"] == "logprob"]
    return (rows["f_input"] / rows["target_text"].str.len()).groupby([rows[name] for name in PLACE]).first()


def first_position(attributions: pd.DataFrame, certificates: pd.DataFrame) -> pd.Series:
    """Score of the first position over the mean absolute score of all, in the certified runs that move it."""
    moved = attributions[(attributions["sink"] == "moved") & (attributions["method"] == IG)]
    rows = certified(moved, certificates).dropna(subset="score")
    size = rows.groupby(PLACE)["score"].agg(lambda scores: scores.abs().mean())
    return rows[rows["position"] == 0].set_index(PLACE)["score"] / size.where(size > 0)


def _agreement(words: pd.DataFrame, certificates: pd.DataFrame, baseline: str, other: str) -> pd.Series:
    """Rank correlation of integrated gradients with another method over the words of a text."""
    table = agreement(words[words["method"].isin([IG, other])], certificates, baseline)
    return table.assign(baseline=baseline, sink="kept").set_index(PLACE)["spearman"].dropna()


def cut_effect(words: pd.DataFrame) -> pd.Series:
    """Within a text: rank correlation of a word's pieces with how far integrated gradients and ablation rank it apart.

    Positive says that finely cut words are those on which the two disagree. Texts whose words all have the same number
    of pieces say nothing and are left out.
    """
    found = {}
    keys = ["text", "model"]
    for place, part in words[words["method"].isin([IG, "ablation"])].groupby(keys):
        wide = part.pivot_table("score", "start", "method").dropna()
        if set(wide.columns) != {IG, "ablation"} or len(wide) < LEAST:
            continue
        pieces = part.drop_duplicates("start").set_index("start")["pieces"].reindex(wide.index)
        apart = (wide[IG].rank() - wide["ablation"].rank()).abs()
        if pieces.nunique() > 1 and apart.nunique() > 1:
            found[(*place, part["baseline"].iloc[0], "kept")] = pieces.corr(apart, method="spearman")
    return pd.Series(found, index=pd.MultiIndex.from_tuples(list(found), names=PLACE), dtype=float)


# ---- questions over texts


@dataclass(frozen=True)
class Question:
    """One measure put to the test: is it another under two models (`paired`), or is its mean other than `against`?

    `claim` is the original's, `sign` the direction it says; without a claim both directions are a finding. A claim
    with a mark of its own (`against`) fails beyond it, where one about a sign is turned round. `baseless` measures have
    no baseline in them.
    """

    measure: str
    asked: str
    paired: bool
    claim: str = ""
    sign: int = 0
    against: float = 0.0
    baseless: bool = False


SHARE = "share in the importance of the text's words"
QUESTIONS = (
    Question("entropy", "evenness of importance over words (entropy, one is even)", True, EVEN, 1),
    Question("gini", "concentration of importance on few words (Gini, zero is even)", True, EVEN, -1),
    Question("negative", "share of negative importance", True, LESS, -1),
    Question("answer", "log-probability of the answer, nats a character", True, baseless=True),
    Question("pieces", "tokens that cover a word", True, baseless=True),
    Question("agreement_ablation", "rank correlation of integrated gradients and ablation", True),
    Question("question_mark", f"“?” by integrated gradients: {SHARE}", False, MARK, -1),
    Question("question_mark_ablation", f"“?” by ablation: {SHARE}", False, MARK, -1),
    Question("other_marks", f"other punctuation by integrated gradients: {SHARE}", False, MARKS, -1),
    Question("other_marks_ablation", f"other punctuation by ablation: {SHARE}", False, MARKS, -1),
    Question(
        "first_position", "first position, moved with the rest: score over the mean size of all", False, FIRST, -1, -1.0
    ),
    Question("agreement_ablation", "rank correlation of integrated gradients and ablation", False, AGREE, 1, 0.5),
    Question("agreement_attention", "rank correlation of integrated gradients and attention", False),
    Question("cut", "rank correlation of a word's pieces with how far the two methods rank it apart", False),
)


def verdict(claimed: int, p: float, difference: float, against: float = 0.0) -> str:
    """A corrected p that is not there means that too few texts changed for any answer.

    >>> verdict(1, 0.01, 0.2), verdict(-1, 0.01, 0.2), verdict(1, 0.2, 0.2), verdict(0, 0.01, 0.2)
    ('holds', 'the opposite holds', 'no difference found', 'difference')
    >>> verdict(1, float("nan"), 0.2), verdict(1, 0.01, -0.2, against=0.5)
    ('cannot be decided', 'does not hold')
    """
    if np.isnan(p):
        return UNDECIDED
    if p >= LEVEL:
        return NONE
    if not claimed:
        return FOUND
    return HOLDS if np.sign(difference) == claimed else FAILS if against else OPPOSITE


def tests(
    measured: pd.DataFrame,
    pairs: Mapping[str, str],
    base: str,
    default: str,
    controls: Collection[str] = (),
    seed: int = 0,
) -> pd.DataFrame:
    """One row a question, model, baseline and sink; p values corrected in two families (see above).

    `pairs` names the observation that each text of the study belongs to. For a paired question `model` is compared with
    `base`, over observations all of whose texts were measured under both; otherwise `mean_base` is empty and the
    difference is from `against`. `at_default` is the same difference on the same texts at the `default` baseline, for
    rows at another one.
    """
    panel = _Panel(measured, pd.Series(pairs), base, default, seed)
    rows = [panel.ask(question, place) for question in QUESTIONS for place in panel.places(question)]
    table = pd.DataFrame([row for row in rows if row])
    if table.empty:
        return table
    own = ((table["baseline"] == default) | (table["sink"] == "moved")) & ~table["model"].isin(controls)
    found = pd.concat([corrected(part) for part in (table[own], table[~own]) if len(part)]).sort_index()
    judged = found[["sign", "p_adjusted", "difference", "against"]].to_numpy(float).tolist()
    return found.assign(verdict=[verdict(int(sign), *rest) for sign, *rest in judged])


@dataclass(frozen=True)
class _Panel:
    """The measures of a study, to which one question after the other is put."""

    measured: pd.DataFrame
    pairs: pd.Series
    base: str
    default: str
    seed: int

    def places(self, question: Question) -> list[tuple[str, str, str]]:
        """Models, baselines and sinks at which the question can be asked."""
        values = self.measured[self.measured["measure"] == question.measure]
        places = values[["model", "baseline", "sink"]].drop_duplicates().itertuples(index=False, name=None)
        return [
            (model, baseline, sink)
            for model, baseline, sink in places
            if not (question.paired and model == self.base) and (not question.baseless or baseline == self.default)
        ]

    def ask(self, question: Question, place: tuple[str, str, str]) -> dict[str, Any]:
        """The row of one question at one place; empty where nothing was measured under both models."""
        model, baseline, sink = place
        values = self.measured[(self.measured["measure"] == question.measure) & (self.measured["sink"] == sink)]
        wide = values.pivot_table(index="text", columns=["baseline", "model"], values="value")
        if question.paired and (baseline, self.base) not in wide:
            return {}
        other = wide[baseline, model]
        start = wide[baseline, self.base] if question.paired else pd.Series(question.against, other.index)
        texts = {"start": start, "other": other}
        if (
            question.paired
            and baseline != self.default
            and {(self.default, self.base), (self.default, model)} <= {*wide}
        ):
            texts["at_default"] = wide[self.default, model] - wide[self.default, self.base]
        both = self.observations(pd.DataFrame(texts).dropna(), question.paired)
        if both.empty:
            return {}
        keys = {"question": question.measure, "asked": question.asked, "paired": question.paired}
        keys |= {"claim": question.claim, "sign": question.sign, "against": question.against}
        keys |= {"model": model, "baseline": baseline, "sink": sink}
        means = {"mean_base": both["start"].mean() if question.paired else None, "mean": both["other"].mean()}
        means["at_default"] = both["at_default"].mean() if "at_default" in both else None
        return keys | means | paired_test(both["start"], both["other"], self.seed, RESOLUTION)

    def observations(self, texts: pd.DataFrame, complete: bool) -> pd.DataFrame:
        """Means over the texts of each observation; `complete` leaves out those of which a text is missing.

        Half a translation pair is no smaller version of it: the two models may read one of its languages alike.
        """
        grouped = texts.groupby(self.pairs.reindex(texts.index))
        whole = grouped.size() == self.pairs.value_counts().reindex(grouped.size().index)
        return grouped.mean()[whole] if complete else grouped.mean()


COUNTS = ("texts", "words", "beyond_floor", "real")


def changes(tables: Tables, base: str, baselines: Sequence[str]) -> pd.DataFrame:
    """One row a compared model: words compared with the base, how many differ for real, and by how much in the mean.

    The difference is that at the first of `baselines`, its sign must hold at all of them that converged. Only texts on
    which integrated gradients converged at two of them can show a real difference: others are left out. All models are
    counted on the same words, those that each of them has; one that has none has a row of zeros.
    """
    scores, proofs = tables["word_scores"], tables["certificates"]
    own = scores[scores["baseline"].isin(baselines) & (scores["method"] == IG) & (scores["sink"] == "kept")]
    proven = set(certified(own, proofs)["model"])
    compared = {
        model: differences(own, proofs, base, model, baselines[0]).dropna(subset="sign_stable")
        for model in own["model"].unique()
        if model != base and {base, model} <= proven
    }
    words = [set(zip(found["text"], found["start"], strict=True)) for found in compared.values() if len(found)]
    common = set.intersection(*words) if words else set()
    rows = [
        {"model": model} | (_counted(compared[model], common) if model in compared else dict.fromkeys(COUNTS, 0))
        for model in own["model"].unique()
        if model != base
    ]
    return pd.DataFrame(rows, columns=["model", *COUNTS, "mean_size"])


def _counted(difference: pd.DataFrame, common: set[tuple[str, int]]) -> dict[str, float]:
    shared = [place in common for place in zip(difference["text"], difference["start"], strict=True)]
    rows = difference[np.array(shared, dtype=bool)]
    counts = (rows["text"].nunique(), len(rows), int(rows["beyond_floor"].sum()), int(real(rows).sum()))
    return dict(zip(COUNTS, counts, strict=True)) | {"mean_size": rows["difference"].abs().mean()}


def proof_table(certificates: pd.DataFrame) -> pd.DataFrame:
    """How many certificates converged, a row a model, baseline and sink, with what they cost."""
    grouped = certificates.groupby([name for name in CASE if name in ("model", "baseline", "sink")], sort=False)
    table = grouped.agg(
        cases=("converged", "size"),
        tolerance=("tolerance", "first"),
        certified=("converged", "mean"),
        evaluations_median=("evaluations", "median"),
        evaluations_max=("evaluations", "max"),
    )
    return table.reset_index()
