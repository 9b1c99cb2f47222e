"""The report as a whole: it follows the tables, shows text as text, and reads as a person has read it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from markupsafe import Markup

from report import appendix, build, site
from report.facts import facts
from report.pictures import Pictures
from tests.synthetic import alt_text, measured, refreshed, study, with_path
from xai_utils.errors import UserError
from xai_utils.study import results
from xai_utils.study.tables import StudyTables

GOLDEN = Path(__file__).parent / "golden"
TRIPLE = ("base", "ru-ts", "shuffled")
PUSH = {  # a change to one table that the page must follow
    "behaviour": lambda t: t.assign(probability=t["probability"] * 0.4),
    "word_scores": lambda t: t.assign(score=t["score"] * -2.7 - 0.9, low=t["low"] - 4, stands=False),
    "certificates": lambda t: t.assign(relative_delta=t["relative_delta"] * 3, evaluations=t["evaluations"] + 11),
    "attention_heads": lambda t: t.assign(sink=1 - t["sink"], norm_sink=t["norm_sink"] / 3),
    "attention_first_head": lambda t: t.assign(sink=t["sink"] * 4),
    "attention_rollout": lambda t: t.assign(rollout=t["rollout"] + 0.1),
    "attention_change": lambda t: t.assign(divergence=t["divergence"] * 3, beyond_floor=True),
    "faithfulness": lambda t: t.assign(share=t["share"] * 0.7),
    "stability": lambda t: t.assign(rank_correlation=t["rank_correlation"] + 0.3, same_top=1.0),
    "swap": lambda t: t.assign(score=t["score"] * -2),
    "bridge": lambda t: t.assign(score=t["score"] * -2),
    "adapter_path_words": lambda t: t.assign(score=t["score"] * 3),
    "adapter_path_certificates": lambda t: t.assign(converged=t["text"] == "moons"),
    "layer_deletion": lambda t: t.assign(highest=t["random"]),
    "tokenization": lambda t: t.assign(truncated=5),
    "questions": lambda t: t.assign(verdict="holds"),
}


@pytest.fixture(scope="module")
def found() -> StudyTables:
    return with_path(measured(texts=("planets", "capital", "moons", "bird", "proverb", "file")))


def page(found: StudyTables, template: str = "index.md.j2") -> str:
    more = appendix.parts(found, {}) if "appendix" in template else {}
    return build.render(template, facts(found), None, **more)[0]


def changed(found: StudyTables, name: str, change) -> StudyTables:
    return StudyTables(found.study, dict(found.tables) | {name: change(found.table(name).copy())})


@pytest.fixture(scope="module")
def whole(found):
    return page(found)


@pytest.mark.parametrize("name", PUSH)
def test_a_changed_table_changes_the_page(found, whole, name):
    assert page(changed(found, name, PUSH[name])) != whole


def test_a_table_that_is_missing_is_not_spoken_of(found, whole):
    assert page(found) == whole
    for name in (*PUSH, "agreement", "difference"):
        if name not in ("tokenization", "word_scores", "certificates"):
            fewer = page(StudyTables(found.study, {key: table for key, table in found.tables.items() if key != name}))
            assert len(fewer) <= len(whole) and not re.search(r"\b(None|nan)\b", fewer)
    assert "## Can it be trusted?" in page(StudyTables(found.study, {}))


def test_settings_are_those_of_the_study_file(found):
    other = refreshed(replace(found, study=study(tolerance=0.07, steps=33, max_tokens=99)))
    text = page(other) + page(other, "appendix.md.j2")
    assert "certified to 7\u00a0%" in text and "33 fixed steps" in text and "| max\\_tokens | 99 |" in text


def test_what_did_not_converge_is_counted(found):
    failed = changed(found, "certificates", lambda table: table.assign(converged=table["text"] == "moons"))
    assert "2 of 12 runs are certified" in page(failed) and "takes no part in any comparison" in page(failed)
    assert '"converged": false' in page(failed, "appendix.md.j2")


@pytest.mark.parametrize("name", ["pair", "one"])
def test_the_page_is_the_one_that_a_person_read(name):
    """After a change of the templates: read the page, then write it with `python -m tests.test_report`."""
    assert golden(name) == (GOLDEN / f"{name}.md").read_text(encoding="utf-8")


def golden(name: str) -> str:
    made = measured(TRIPLE[:2] if name == "pair" else TRIPLE[:1], claims="original" if name == "pair" else None)
    show = lambda figure: Markup(f"![{figure}](figs/{figure}.png)\n")  # noqa: E731
    return build.render("index.md.j2", facts(made), None, figure=show)[0]


def test_somebody_elses_two_texts_get_a_page_of_their_own():
    text = page(measured(texts=("capital", "bird"), claims=None))
    assert "original" not in text.split("## Can it")[0] and "What became of the original" not in text
    assert "Add prompts: a test over prompts needs at least 6" in text
    assert text.index("## What to do next") > text.index("## Discussion")


def test_texts_without_answers_are_not_compared():
    made = measured(claims=None)
    entries = tuple(text.model_copy(update={"answer": None}) for text in made.study.texts)
    tables = dict(made.tables)
    tables["behaviour"] = tables["behaviour"].assign(answer=None, probability=float("nan"))
    text = page(refreshed(StudyTables(made.study.model_copy(update={"texts": entries}), tables)))
    assert "no answer is given" in text and "became likelier" not in text
    assert "do not meet" not in text and "stay apart" not in text


def test_counts_are_of_the_prompts_whose_answer_moved(found):
    moved = facts(found).behaviour.moved
    assert 0 < len(moved) < len(found.study.texts) and facts(found).swap.texts == len(moved)
    assert f"of {len(moved)} prompts whose answer moved" in page(found)
    steady = changed(found, "behaviour", lambda table: table.assign(probability=0.6))
    assert facts(steady).swap.texts == len(found.study.texts) and "whose answer moved" not in page(steady)


def test_markup_is_text(found):
    nasty = "{{< x >}} <b>*a*</b> | $x$ ` \u202e"
    entries = [text.model_copy(update={"text": nasty, "answer": nasty, "group": nasty}) for text in found.study.texts]
    tables = dict(found.tables)
    tables["word_scores"] = tables["word_scores"].assign(word=nasty)
    tables["behaviour"] = tables["behaviour"].assign(answer=nasty, next_text=nasty, continuation=nasty)
    tables["swap"] = tables["swap"].assign(part=nasty)
    made = StudyTables(found.study.model_copy(update={"texts": tuple(entries)}), tables)
    for template in ("index.md.j2", "appendix.md.j2"):
        text = page(made, template)
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        assert "{{" not in text and "<b>" not in prose and "*a*" not in prose.replace("\\*a\\*", "")
        assert "`" not in re.sub(r"\\`|`[\w/:. ]+`", "", prose) and "$" not in prose
        assert "\u202e" not in prose
        for heads, row in re.findall(r"^(\|.*\|)\n\|[-:|]+\|\n(\|.*\|)$", prose, flags=re.MULTILINE):
            assert heads.count("|") == row.count("|")


def test_raw_scores_are_the_table(found):
    block = str(appendix.raw_scores(found, "ru-ts"))
    own, fixed = json.loads(block.removeprefix("```json").removesuffix("```"))
    rows = found.table("attributions").query("model == 'ru-ts' and text == 'planets'")
    rows = rows.query("method == 'integrated_gradients' and baseline == 'mean'")
    assert [pair[0] for pair in own["scores"]] == rows["token"].tolist()
    assert own["scores"][0][1] is None and own["scores"][1][1] == pytest.approx(rows["score"].iloc[1], rel=5e-3)
    assert fixed["method"] == "fixed_steps" and fixed["converged"] is False


# ---- files


@pytest.fixture
def written(found, tmp_path, monkeypatch) -> StudyTables:
    """A study whose tables lie where the notebooks write them."""
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    for name, table in found.tables.items():
        if len(table):
            results.write_table(table, found.study, name)
    return found


def test_build_writes_pages_figures_and_site(written, tmp_path):
    stale = tmp_path / "made" / "report" / "blog" / "figs" / "stale.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    other = stale.with_name("other.png")  # of a page that this study does not write
    other.write_bytes(b"a picture")
    (stale.parents[1] / "other.md").write_text("![a](figs/other.png)")
    inserts = build.write(written.study)
    path = tmp_path / "made" / "report" / "blog" / "index.md"
    text = path.read_text(encoding="utf-8")
    assert text.startswith('---\nweight: 1\nbookFlatSection: true\ntitle: "')
    shown = {name for name, _ in re.findall(r"\(figs/(\w+)(\.png)\)", text)}
    assert shown | {"other"} == {file.stem for file in (path.parent / "figs").iterdir()} and "sentence" in shown
    assert other.read_bytes() == b"a picture"
    assert build.write(written.study) == inserts and path.read_text(encoding="utf-8") == text
    folder = site.build(written.study, inserts, [])
    assert folder == path.parent.parent / "site"
    assert {"index.html", "appendix.html"} == {file.name for file in folder.glob("*.html")}
    front = (folder / "index.html").read_text(encoding="utf-8")
    assert 'class="word"' in front and "data-value=" in front  # sentences as text in colour, not as a picture
    assert "<p><b>What each word adds to the answer, prompt by prompt</b></p>" in front


def test_figures_have_alt_texts_of_their_own(found, tmp_path):
    pictures = Pictures(found, facts(found), tmp_path)
    names = [name for name in ("sentence", "sentences", "leaderboard", "heads") if pictures.show(name)]
    alts = [alt_text(tmp_path / f"{name}.png") for name in names]
    assert len(names) == 4 and len(set(alts)) == 4
    assert all(alt.count(". ") <= 2 and len(alt) < 300 and "None" not in alt for alt in alts)
    assert pictures.show("unknown") == ""


def test_build_before_the_notebooks_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    with pytest.raises(UserError, match="has no table 'tokenization' yet"):
        build.write(study())


def test_the_finding_stands_in_the_readme(found, tmp_path):
    readme = "# Title\n<!-- finding: x -->\nold\n<!-- /finding -->\nrest\n"
    pictures = Pictures(found, facts(found), tmp_path)
    made = build.with_finding(readme, facts(found), pictures)
    assert build.say(found, "lead").strip() in made and "(report/blog/figs/sentence.png)" in made
    assert made.startswith("# Title\n<!-- finding: x -->\n") and made.endswith("<!-- /finding -->\nrest\n")
    assert "old" not in made and made == build.with_finding(made, facts(found), pictures)


def test_a_notebook_says_what_the_report_says(found):
    whole = page(found)
    for name in ("lead", "behaviour", "swap", "layers", "words", "trust", "attention", "claims"):
        said = build.say(found, name)
        assert said.strip() and said.strip() in whole, name
    assert build.say(StudyTables(found.study, {"attention_heads": found.table("attention_heads")}), "words") == ""


def test_long_studies_of_a_former_checkpoint_are_left_out(found, monkeypatch):
    published = replace(found, study=found.study.model_copy(update={"published": True, "name": "default"}))
    table = pd.DataFrame({"method": ["rollout"], "share": [1.0], "role": ["base"], "correlation": [0.9], "texts": [8]})
    monkeypatch.setattr(build.evidence, "read", lambda: {"sanity": table})
    for former in ([], ["ru-ts"]):
        monkeypatch.setattr(build.evidence, "outdated", lambda tables, study, former=former: former)
        assert ("sanity" in build.long_studies(published)) == (not former)
    assert build.long_studies(found) == {}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for each in ("pair", "one"):
        (GOLDEN / f"{each}.md").write_text(golden(each), encoding="utf-8")
