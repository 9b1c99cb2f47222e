"""The long studies in sentences, for the summary beside their tables and for the report.

Read from the published tables alone, so that what is said and what is published cannot part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from report.sentences import Sentence
from xai_utils.attribution.methods import method_name
from xai_utils.evaluation.statistics import NONE, UNDECIDED
from xai_utils.study.corpus import FAILS, HOLDS
from xai_utils.study.evidence_tables import best_method

Tables = Mapping[str, pd.DataFrame]
LEVEL = 0.95  # of the bootstrap intervals


def _table(tables: Tables, name: str) -> pd.DataFrame:
    return tables.get(name, pd.DataFrame())


def default_baseline(tables: Tables) -> Sentence | None:
    """What the baselines certify that were tried on all cases, at one price; nothing to choose from one."""
    table = _table(tables, "baselines")
    if table.empty:
        return None
    rows = table[(table["sink"] == "kept") & (table["cases"] == table["cases"].max())]
    if len(rows) < 2:
        return None
    rows = rows.sort_values("certified_within", ascending=False, kind="stable")
    parts = tuple(
        Sentence("{baseline} {share:.0%}", {"baseline": row.baseline, "share": row.certified_within})
        for row in rows.itertuples()
    )
    facts = {"limit": int(rows["limit"].iloc[0]), "cases": int(rows["cases"].iloc[0]), "parts": parts}
    return Sentence(
        "Within {limit} gradient evaluations, the first position kept, so many of {cases:#case/cases} are certified at "
        "the baseline: {parts}. The default is {own}.",
        facts | {"own": str(table["default"].iloc[0])},
    )


def published_setting(tables: Tables) -> Sentence | None:
    """What the default baseline reaches with its full budget."""
    table = _table(tables, "baselines")
    if table.empty:
        return None
    row = table[(table["sink"] == "kept") & (table["baseline"] == table["default"])].iloc[0]
    return Sentence(
        "In the published setting (baseline {baseline}, the sink kept, up to {budget} gradient evaluations) "
        "{certified:.0%} of {cases:#case is/cases are} certified at {tolerance:.0%}; all of them took {median:.0f} "
        "evaluations in the median and {most} at most.",
        {
            "baseline": row["baseline"],
            "budget": int(row["budget"]),
            "certified": row["certified"],
            "cases": int(row["cases"]),
            "tolerance": row["tolerance"],
            "median": row["evaluations_median"],
            "most": int(row["evaluations_max"]),
        },
    )


def ranks(tables: Tables) -> Sentence | None:
    """How much the order of the words depends on the baseline."""
    table = _table(tables, "baselines")
    if table.empty:
        return None
    rows = table[(table["baseline"] != table["default"]) | (table["sink"] != "kept")].dropna(subset="rank_mean")
    if rows.empty:
        return None
    parts = tuple(
        Sentence(
            "{baseline} with the sink {sink} {mean:.2f} (least {least:.2f}, {n:#case/cases})",
            {
                "baseline": row.baseline,
                "sink": row.sink,
                "mean": row.rank_mean,
                "least": row.rank_least,
                "n": int(row.rank_cases),
            },
        )
        for _, row in rows.sort_values("rank_mean", ascending=False).iterrows()
    )
    return Sentence(
        "Mean rank correlation of the words' scores with those at the default baseline, {default}: {parts}.",
        {"default": table["default"].iloc[0], "parts": parts},
    )


def unproven(tables: Tables) -> Sentence | None:
    """How many certificates of the corpus study did not converge."""
    table = _table(tables, "corpus_certificates")
    if table.empty:
        return None
    failed = ((1 - table["certified"]) * table["cases"]).sum()
    return Sentence(
        "In the corpus study {failed} of {n:#attribution/attributions} did not converge; they take no part.",
        {"failed": round(failed), "n": int(table["cases"].sum())},
    )


FAMILIES = {"gradients": "gradient", "influence": "perturbation"}
CHOSEN = (
    "{name} is above their mean in {above} and beyond their 95th percentile in {beyond} of {n} with words put at "
    "{deletion}"
)
ABOVE, BEYOND = 14 / 16, 10 / 16  # of a study's cases: what a method that is of use should reach


def best_methods(tables: Tables) -> Sentence | None:
    """Which gradient and which perturbation method names the words that matter, on texts of their own."""
    table = _table(tables, "methods")
    if table.empty:
        return None
    best = tuple(
        Sentence(
            "the best {kind} method is {name}",
            {"kind": kind, "name": method_name(best_method(table, family))},
        )
        for family, kind in FAMILIES.items()
    )
    facts = {"n": int(table["cases"].max()), "best": best}
    form = "By deletion tests on {n} cases that the published study does not hold, {best}"
    ranks = table.groupby(["family", "method"])["mean_rank"].mean()
    control = ranks.get("position", pd.Series(dtype=float))
    if len(control) and control.min() < ranks.drop("position").min():
        form += (
            "; an order by position alone, {control}, has a better mean rank than every method ({rank:.2f} against "
            "{least:.2f})"
        )
        facts |= {"control": method_name(str(control.idxmin())), "rank": control.min()}
        facts["least"] = ranks.drop("position").min()
    return Sentence(form + ".", facts)


def chosen_methods(tables: Tables, faithfulness: pd.DataFrame) -> Sentence | None:
    """How those two do on a study's own cases, in comprehensiveness, against random orders of the words."""
    table = _table(tables, "methods")
    if table.empty or faithfulness.empty:
        return None
    rows = faithfulness.dropna(subset="comprehensiveness")
    parts, reached = [], []
    for family in FAMILIES:
        name = best_method(table, family)
        for deletion, own in rows[rows["method"] == name].groupby("deletion", sort=False):
            above = int((own["comprehensiveness"] > own["comprehensiveness_random"]).sum())
            beyond = int(own["comprehensiveness_beats_random"].astype(bool).sum())
            reached.append(above >= ABOVE * len(own) and beyond >= BEYOND * len(own))
            facts = {"name": method_name(name), "deletion": deletion, "above": above, "beyond": beyond, "n": len(own)}
            parts.append(Sentence(CHOSEN, facts))
    if not parts:
        return None
    return Sentence(
        "Against random orders on the cases of this study, {parts}. A useful method should be above their mean in "
        "{above:.0%} of the cases and beyond the percentile in {beyond:.0%}: {reached} of these {n} are.",
        {"parts": tuple(parts), "above": ABOVE, "beyond": BEYOND, "reached": sum(reached), "n": len(reached)},
    )


def corpus_claims(tables: Tables) -> list[Sentence]:
    """Each claim of the original with its verdict, one sentence a claim, measure and model, at the study's baseline."""
    rows = _main(_table(tables, "corpus_tests"))
    return [_told(row) for _, row in rows.iterrows() if row["claim"]] if len(rows) else []


def corpus_tested(tables: Tables) -> Sentence | None:
    """What differs between the models over the corpus and what does not, for the opening of a report."""
    rows = _main(_table(tables, "corpus_tests"))
    rows = rows[rows["paired"].astype(bool)] if len(rows) else rows
    if rows.empty:
        return None
    same = rows["verdict"].isin([NONE, UNDECIDED])
    changed = tuple(
        Sentence(
            "{asked} ({start:.3g} under {base}, {mean:.3g} under {model}; interval of the change {low:+.2g} to "
            "{high:+.2g}, {n:#pair/pairs})",
            {"asked": row["asked"], "start": row["mean_base"], "base": row["base"], "mean": row["mean"]}
            | {"model": row["model"], "low": row["low"], "high": row["high"], "n": int(row["n"])},
        )
        for _, row in rows[~same].iterrows()
    )
    form = "Over up to {n:#translation pair/translation pairs} of the corpus, "
    form += "the models differ in {changed}" if changed else "no question finds a difference"
    if same.any() and changed:
        form += "; no difference is found in {none}"
    facts = {"n": int(rows["n"].max()), "none": tuple(rows.loc[same, "asked"])} | (
        {"changed": changed} if changed else {}
    )
    return Sentence(form + ".", facts)


def over_corpus(tables: Tables) -> dict[str, Sentence]:
    """What the corpus study says of each of the original's claims: its verdict, or how often each where there are
    several."""
    rows = _main(_table(tables, "corpus_tests"))
    found: dict[str, Sentence] = {}
    for claim, part in rows[rows["claim"] != ""].groupby("claim", sort=False) if len(rows) else ():
        counts = part["verdict"].value_counts(sort=False)
        tests = tuple(
            Sentence("{verdict} in {k} of {n:#test/tests}", {"verdict": verdict, "k": int(k), "n": len(part)})
            for verdict, k in counts.items()
        )
        found[str(claim)] = (
            Sentence("{tests}", {"tests": tests}) if len(counts) > 1 else Sentence("{all}", {"all": counts.index[0]})
        )
    return found


def corpus_findings(tables: Tables) -> list[Sentence]:
    """What was asked without a claim of the original's, told in the same way."""
    rows = _main(_table(tables, "corpus_tests"))
    return [_told(row) for _, row in rows.iterrows() if not row["claim"]] if len(rows) else []


def _main(table: pd.DataFrame) -> pd.DataFrame:
    """The rows at the study's own baseline, or with the sink moved, of the pair alone; those without an interval say
    nothing."""
    if table.empty:
        return table
    own = (table["baseline"] == table["default"]) | (table["sink"] == "moved")
    return table[own & (table["role"] != "control")].dropna(subset=["low", "high"])


def _told(row: pd.Series) -> Sentence:
    form = "{asked}: "
    facts = {"asked": row["asked"][0].upper() + row["asked"][1:], "model": row["model"], "n": int(row["n"])}
    facts |= {"mean": row["mean"], "low": row["low"], "high": row["high"], "p": row["p_adjusted"]}
    if row["claim"]:
        told = {HOLDS: HOLDS, FAILS: FAILS, NONE: "is not shown: no difference found", UNDECIDED: UNDECIDED}
        outcome = told.get(row["verdict"], "is turned round")
        form = "“{claim}” " + outcome + ". " + form
        facts["claim"] = row["claim"]
    if row["paired"]:
        form += "{mean:.3g} under {model}, {start:.3g} under {base}, change {change:+.2g}"
        facts |= {"start": row["mean_base"], "base": row["base"], "change": row["difference"]}
    else:
        form += "{mean:+.3g} under {model}"
        facts |= {"low": row["low"] + row["against"], "high": row["high"] + row["against"]}
    form += ", {level:.0%} interval {low:+.2g} to {high:+.2g}, "
    form += "too few of them changed for a test, " if row["verdict"] == UNDECIDED else "corrected p {p:.2g}, "
    form += "over {n:#pair/pairs} of texts"
    facts["level"] = LEVEL
    if not row["claim"]:
        form += f"; {row['verdict']}"
    if row["against"]:
        form += f"; the claim asks for {'more' if row['sign'] > 0 else 'less'} than {{against:g}}"
        facts["against"] = row["against"]
    if row["sink"] == "moved":
        form += "; at the baseline {baseline}, with the first position moved"
        facts["baseline"] = row["baseline"]
    return Sentence(form + ".", facts)


def turned(tables: Tables) -> Sentence | None:
    """Which changes that were found have the other sign at another baseline, on the texts that were put to both."""
    table = _table(tables, "corpus_tests")
    if table.empty:
        return None
    rows = table[table["paired"].astype(bool) & (table["role"] == "adapted")]
    main = rows[(rows["baseline"] == rows["default"]) & ~rows["verdict"].isin([NONE, UNDECIDED])]
    others = rows[rows["question"].isin(main["question"])].dropna(subset="at_default")
    if others.empty:
        return None
    flipped = others[others["difference"] * others["at_default"] < 0]
    facts = {"n": len(others), "baselines": tuple(sorted(set(others["baseline"]))), "texts": int(others["n"].max())}
    if flipped.empty:
        return Sentence(
            "No change that was found has the other sign at another baseline ({baselines}; {n} put to it, on "
            "{texts:#pair/pairs} of texts).",
            facts,
        )
    parts = tuple(
        Sentence(
            "{asked} ({here:+.2g} at {default}, {change:+.2g} at {baseline} on the same {n:#pair/pairs} of texts)",
            {"asked": r["asked"], "here": r["at_default"], "default": r["default"], "change": r["difference"]}
            | {"baseline": r["baseline"], "n": int(r["n"])},
        )
        for _, r in flipped.iterrows()
    )
    return Sentence("**It depends on the baseline**: the sign of the change turns for {parts}.", {"parts": parts})


def controls(tables: Tables) -> Sentence | None:
    """Words that differ for real from the base, for the adapted model and for its controls, on the same words."""
    table = _table(tables, "corpus_changes")
    table = table[table["words"] > 0] if len(table) else table
    if table.empty:
        return None
    parts = tuple(
        Sentence(
            "{model} in {real} of {words:#word/words} (mean absolute difference over all of these {size:.2f} nats)",
            {"model": row.model, "real": int(row.real), "words": int(row.words), "size": row.mean_size},
        )
        for _, row in table.iterrows()
    )
    return Sentence("Beyond the floor and with a stable sign differ from the base: {parts}.", {"parts": parts})


def randomised(tables: Tables) -> Sentence | None:
    """What becomes of a method's ranking when all layers are drawn anew: nothing of the true one should be left."""
    table = _table(tables, "sanity")
    if table.empty:
        return None
    rows = table[table["share"] == table["share"].max()].dropna(subset=["correlation", "low", "high"])
    rows = rows[rows["texts"] > 1]
    if rows.empty:
        return None
    parts = tuple(
        Sentence(
            "{method} under {model} {correlation:+.2f} ({low:+.2f} to {high:+.2f})",
            {"method": method_name(row.method), "model": row.model, "correlation": row.correlation}
            | {"low": row.low, "high": row.high},
        )
        for row in rows.itertuples()
    )
    tied = int(((rows["low"] > 0) | (rows["high"] < 0)).sum())
    form = (
        "Rank correlation of the words' scores with those under weights drawn anew in all layers, one draw, with its "
        "interval over {texts:#text/texts}: {parts}; "
    )
    if tied:
        form += (
            "{tied:#of these intervals leaves/of these intervals leave} out zero: there training alone does not make "
            "the ranking."
        )
    else:
        form += "every interval holds zero."
    return Sentence(form, {"parts": parts, "texts": int(rows["texts"].max())} | ({"tied": tied} if tied else {}))


SINGLE: tuple[Callable[[Tables], Sentence | None], ...] = (
    default_baseline,
    published_setting,
    ranks,
    best_methods,
    randomised,
    unproven,
    controls,
    turned,
)


def said(tables: Tables) -> dict[str, list[Sentence]]:
    """All that can be said of the published tables, by heading; nothing where a table is missing."""
    single = {ask.__name__: ask(tables) for ask in SINGLE}

    def of(*names: str) -> list[Sentence]:
        return [sentence for name in names if (sentence := single[name]) is not None]

    return {
        "Baselines": of("default_baseline", "published_setting", "ranks"),
        "Methods": of("best_methods", "randomised"),
        "The original's claims": corpus_claims(tables) + of("turned"),
        "Other findings": corpus_findings(tables) + of("controls", "unproven"),
    }
