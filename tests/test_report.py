"""The page: every number in it comes from a table, and a changed table changes what is said."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import measured, refreshed, study
from test_observations import changed

from report import build, claims, limits, observations, observed_methods
from report.sentences import Sentence
from xai_utils.errors import UserError
from xai_utils.plots.style import figure, save
from xai_utils.study import results
from xai_utils.study.tables import Measured

TRIPLE = ("base", "ru-ts", "shuffled")
FIXED = {
    "half",
    "margin",
    "rare",
    "level",
    "tolerance",
    "steps",
    "most",
}  # thresholds of the code, and settings that the study file names
STUDY_ALONE = {"claim low_diagonal", "limit 0"}  # the original's range; how many texts, models, languages
PUSH = {  # a change to one table that every number that is taken from it must follow
    "word_scores": lambda t: t.assign(score=t["score"] * -2.7 - 0.9, error=t["error"] * 90),
    "attributions": lambda t: t.assign(score=t["score"] * -2.7 - 0.9),
    "certificates": lambda t: t.assign(
        f_input=t["f_input"] * -3 - t.index % 7,
        bound=t["bound"] * 9,
        relative_delta=t["relative_delta"] * (2 + t.index % 2),
        converged=t["converged"] ^ (t["text"] == "moons"),
    ),
    "attention_heads": lambda t: t.assign(
        sink=1 - t["sink"], diagonal=t["diagonal"] * 3, entropy=t["entropy"] / (2 + t.index % 3), local=t["local"] + 1
    ),
    "agreement": lambda t: t.assign(spearman=-0.6 * t["spearman"] - 0.01 * (t.index % 5)),
    "faithfulness": lambda t: t.assign(
        comprehensiveness=t["comprehensiveness"] * -3,
        comprehensiveness_random=t["comprehensiveness_random"] + 9,
        comprehensiveness_beats_random=~t["comprehensiveness_beats_random"].astype(bool),
    ),
    "tokenization": lambda t: t.assign(
        tokens=t["tokens"] * 3, tokens_per_word=t["tokens_per_word"] * (3 + t.index % 2), truncated=5
    ),
}


@pytest.fixture(scope="module")
def found() -> Measured:
    return measured(TRIPLE)


@pytest.fixture(scope="module")
def pushed(found) -> list[Measured]:
    fewer = measured(TRIPLE, texts=("capital", "moons", "bird"))
    less = {
        "attention_heads": lambda t: t[t["head"] == 0],
        "faithfulness": lambda t: t[t["method"] != "ablation"],
        "leaderboard": lambda t: t[t["model"] == "base"],
        "questions": lambda t: t[t["question"] != "gini"].assign(verdict="difference"),
    }
    return [changed(found, *push) for push in (*PUSH.items(), *less.items())] + [fewer, measured(("base", "ru-ts"))]


def said(found: Measured) -> dict[str, Sentence]:
    """Every sentence of the page by the name of what says it."""
    every = {o.__name__: o(found) for o in observations.ALL + observed_methods.ALL}
    every |= {f"limit {number}": sentence for number, sentence in enumerate(limits.limits(found))}
    for claim, verdict in zip(claims.CLAIMS, claims.verdicts(found), strict=True):
        every |= {f"claim {claim.__name__}": verdict.claim, f"because {claim.__name__}": verdict.because}
    every |= {"title": build.title(found), "headline": build.headline(found)}
    return {name: sentence for name, sentence in every.items() if sentence is not None}


def forms(sentence: Sentence) -> Iterator[str]:
    yield sentence.form
    for _, value in leaves(sentence):
        if isinstance(value, Sentence):
            yield value.form


def leaves(sentence: Sentence, path: str = "") -> Iterator[tuple[str, Any]]:
    """All facts of a sentence and of the sentences inside it, those inside included."""
    for name, value in sentence.facts.items():
        for place, item in enumerate(value if isinstance(value, list | tuple) else [value]):
            where = f"{path}{name}[{place}]"
            yield where, item
            if isinstance(item, Sentence):
                yield from leaves(item, f"{where}.")


def numbers(sentence: Sentence) -> dict[str, float]:
    return {path: value for path, value in leaves(sentence) if not isinstance(value, str | Sentence)}


def test_no_sentence_has_a_number_of_its_own(found, pushed):
    for one in [found, measured(("base",)), *pushed]:
        for name, sentence in said(one).items():
            for form in forms(sentence):
                literal = "".join(text for text, *_ in string.Formatter().parse(form))
                assert not re.search(r"\d", literal), f"{name}: {form}"


def test_the_template_has_no_number_of_its_own():
    text = (build.TEMPLATES / "index.md.j2").read_text(encoding="utf-8")
    text = re.sub(r"\A---.*?---\n", "", text, flags=re.DOTALL)
    assert not re.search(r"\d", re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", text))
    assert not re.search(r"(?<!found)\d", "".join(re.findall(r"\{\{.*?\}\}|\{%.*?%\}", text)))


def test_every_number_of_a_sentence_follows_a_table(found, pushed):
    before, after = said(found), [said(one) for one in pushed]
    stuck = []
    for name, sentence in before.items():
        others = [numbers(one[name]) for one in after if name in one]
        for path, value in numbers(sentence).items():
            if path.split(".")[-1].split("[")[0] in FIXED or name in STUDY_ALONE:
                continue
            if all(other.get(path, value) == value for other in others):
                stuck.append((name, path, value))
    assert not stuck


def test_a_changed_table_changes_the_page(found, pushed):
    figures = build.Figures(Path("nowhere"))
    pages = [build.render(one, figures) for one in [found, *pushed]]
    assert len(set(pages)) == len(pages)
    assert build.render(found, figures) == pages[0]


def test_settings_are_those_of_the_study_file(found):
    other = refreshed(replace(found, study=study(TRIPLE, tolerance=0.07, steps=33, max_tokens=99)))
    page = build.render(other, build.Figures(Path("nowhere")))
    assert "within 7%" in page and "33 fixed steps" in page and "| max tokens | 99 |" in page


def test_what_did_not_converge_is_marked_and_counted(found):
    failed = changed(found, "certificates", lambda table: table.assign(converged=False))
    page = build.render(failed, build.Figures(Path("nowhere")))
    assert "**18 of 18 certificates of integrated gradients at the mean baseline did not converge**" in page
    assert page.count('"converged": false') == 6 and '"converged": true' not in page


@pytest.mark.parametrize("former", [[], ["ru-ts"]])
def test_long_studies_of_a_former_checkpoint_are_told_apart(found, monkeypatch, former):
    monkeypatch.setattr(build.evidence, "outdated", lambda tables, study: former)
    published = replace(found, study=found.study.model_copy(update={"published": True}))
    page = build.render(published, build.Figures(Path("nowhere")))
    opening, studies = page.split("## The long studies")
    assert ("**Of an earlier checkpoint**: ru-ts had other files" in studies) == bool(former)
    assert ("of the corpus, the models differ" in opening) == ("some of them to the corpus" in opening) == (not former)
    assert ("over the corpus |" in opening) == (not former)


def test_one_model_says_what_it_cannot_show():
    page = build.render(measured(("base",)), build.Figures(Path("nowhere")))
    assert "What an adaptation changed" in page and "name a second one in the study file" in page
    assert "noise floor; a filled mark" not in page and "it takes two models" in page


def test_markup_is_text(found):
    nasty = "{{< x >}} <b>*a*</b> | $x$ `"
    entries = [text.model_copy(update={"text": nasty, "answer": nasty, "group": nasty}) for text in found.study.texts]
    tables = {name: table.replace({"планет": nasty, "Сколько": nasty}) for name, table in found.tables.items()}
    tables["word_scores"] = tables["word_scores"].assign(word=nasty)
    made = Measured(found.study.model_copy(update={"texts": tuple(entries)}), tables)
    page = build.render(made, build.Figures(Path("nowhere")))
    prose = re.sub(r"```json\n.*?\n```", "", page, flags=re.DOTALL)
    assert "{{" not in page and "<b>" not in prose and "*a*" not in prose.replace("\\*a\\*", "")
    assert not re.search(r"(?<!\\)`", prose) and "$" not in prose
    rows = [line for line in prose.splitlines() if line.startswith("| planets")]
    assert rows and rows[0].count("|") == 8


def test_raw_scores_are_the_table(found):
    (own, fixed) = build.raw_scores(found, "ru-ts")
    rows = found.table("attributions").query("model == 'ru-ts' and text == 'planets'")
    rows = rows.query("method == 'integrated_gradients' and baseline == 'mean'")
    assert [pair[0] for pair in own["scores"]] == rows["token"].tolist()
    assert own["scores"][0][1] is None and own["scores"][1][1] == pytest.approx(rows["score"].iloc[1], rel=1e-4)
    assert fixed["method"] == "fixed_steps" and fixed["converged"] is False
    block = build.fenced([own, fixed])
    assert json.loads(block.removeprefix("```json").removesuffix("```")) == [own, fixed]


@pytest.fixture
def written(found, tmp_path, monkeypatch) -> Measured:
    """A study whose tables lie where the notebooks write them, with one figure."""
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    for name, table in found.tables.items():
        results.write_table(table, found.study, name)
    save(figure(2, 1), results.folders(found.study).figs / "05_words.ru-ts.png", alt="Words *differ* by $5 | {{x}}")
    return found


def test_build_writes_the_page_its_figures_and_nothing_else_published(written, tmp_path):
    stale = tmp_path / "made" / "report" / "blog" / "figs" / "stale.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    page = build.build(written.study)
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "made" / "report" / "blog" / "index.md"
    assert text.startswith('---\nweight: 1\nbookFlatSection: true\ntitle: "')
    assert [path.name for path in (page.parent / "figs").iterdir()] == ["05_words.ru-ts.png"]
    assert (
        "![Words \\*differ\\* by &dollar;5 &vert; &lbrace;&lbrace;x&rbrace;&rbrace;](figs/05_words.ru-ts.png)" in text
    )
    assert build.build(written.study).read_text(encoding="utf-8") == text


def test_build_before_the_notebooks_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    with pytest.raises(UserError, match="has no table 'tokenization' yet"):
        build.build(study())


def test_the_page_reads_on_its_own(found):
    page = build.render(found, build.Figures(Path("nowhere")))
    headings = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    assert headings[0].startswith("What became of the original") and headings[-1] == "Limitations"
    for line in page.split("```")[0::2]:
        assert "None" not in line and "nan" not in re.findall(r"\bnan\b", line)


def test_the_finding_stands_in_the_readme(found, tmp_path):
    readme = "# Title\n<!-- finding: x -->\nold\n<!-- /finding -->\nrest\n"
    made = build.with_finding(readme, found, build.Figures(tmp_path))
    assert str(observations.largest_differences(found)) in made and str(observations.real_differences(found)) in made
    assert made.startswith("# Title\n<!-- finding: x -->\n") and made.endswith("<!-- /finding -->\nrest\n")
    assert "old" not in made
    assert made == build.with_finding(made, found, build.Figures(tmp_path))
