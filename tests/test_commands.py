"""The command line on one text: explain, compare, methods, doctor; help that a person can read."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import xai_utils as xai
from tests.tiny import save_tiny
from xai_utils import doctor
from xai_utils.__main__ import main
from xai_utils.attribution.methods import METHODS

TEXT, ANSWER = "The capital of France is", " Paris."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    return [str(save_tiny(models / name, seed=seed)) for seed, name in enumerate(("one", "two"))]


def said(capsys, *arguments: str) -> str:
    """What a command prints; click ends by raising SystemExit."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code
    return capsys.readouterr().out


def test_the_sentence_and_its_scores_in_a_plain_terminal(folders, capsys):
    out = said(capsys, "explain", TEXT, "--answer", ANSWER, "--model", folders[0], "--method", "ablation")
    assert out == repr(xai.explain(TEXT, xai.load(folders[0]), answer=ANSWER, method="ablation")) + "\n"
    assert "\x1b" not in out


def test_colours_on_a_terminal_that_has_them(folders):
    from rich.console import Console

    from xai_utils.plots.sentence import colours, reach_of
    from xai_utils.plots.terminal import coloured

    found = xai.explain(TEXT, xai.load(folders[0]), answer=ANSWER, method="ablation")
    console = Console(force_terminal=True, color_system="truecolor", width=120)
    with console.capture() as capture:
        console.print(coloured(found))
    row = found.words.iloc[1]
    back, ink = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in colours(row["score"], reach_of([found])))
    mark = f"\x1b[38;2;{ink[0]};{ink[1]};{ink[2]};48;2;{back[0]};{back[1]};{back[2]}m"
    assert f"{mark}{row['word']}" in capture.get()


def test_json_holds_the_numbers(folders, capsys):
    options = ["--answer", ANSWER, "--model", folders[0], "--method", "integrated_gradients", "--set", "baseline=mean"]
    told = json.loads(said(capsys, "explain", TEXT, *options, "--json"))
    found = xai.explain(TEXT, xai.load(folders[0]), answer=ANSWER, method="integrated_gradients", baseline="mean")
    assert [row["word"] for row in told["words"]] == found.words["word"].tolist()
    np.testing.assert_allclose([row["score"] for row in told["words"]], found.words["score"], atol=1e-5)
    assert told["tokens"][0]["score"] is None and told["baseline"] == "mean"
    assert told["certificate"]["converged"] == found.certificate.converged


def test_two_models_and_a_picture(folders, capsys, tmp_path):
    options = ["--answer", ANSWER, "--model", folders[0], "--other", folders[1], "--method", "ablation"]
    told = json.loads(said(capsys, "compare", TEXT, *options, "--json", "--png", str(tmp_path / "two.png")))
    for row in told["words"]:
        assert row["difference"] == pytest.approx(row["two"] - row["one"])
    picture = Image.open(tmp_path / "two.png")
    assert picture.width > 200 and len(picture.convert("RGB").getcolors(2**16)) > 20


@pytest.mark.parametrize(
    "options, message",
    [
        (["--set", "absence"], "--set absence: expected key=value; write for example --set absence=1"),
        (["--set", "absense=mean"], "--set absense: ablation has no such setting; did you mean 'absence'?"),
        (["--set", "absence=gone"], "absence: expected 'dropped', 'hidden', "),
        (["--set", "seed=x"], "--set seed=x: expected a int like the default 0"),
        (["--method", "abblation"], "unknown method 'abblation'; did you mean 'ablation'?"),
        (["--png", "/proc/x.png"], "/proc/x.png cannot be written"),
    ],
)
def test_a_wrong_option_is_one_line(folders, capsys, options, message):
    known = ["explain", TEXT, "--answer", ANSWER, "--model", folders[0], "--method", "ablation"]
    assert main([*known, *options]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ") and message in told and told.count("\n") == 1


def test_every_method_is_listed_with_its_settings_and_cost(capsys):
    parts = re.split(r"^(?=\w)", said(capsys, "methods"), flags=re.MULTILINE)[1:]
    assert [re.match(r"\w+", part).group() for part in parts] == list(METHODS)
    for part, method in zip(parts, METHODS.values(), strict=True):
        assert method.cost != "not said" and f"cost: {method.cost}" in part
        assert re.findall(r"(\w+)=", part) == method.settings


def test_help_names_everything_in_full():
    def told(*arguments):
        command = [sys.executable, "-m", "xai_utils", *arguments, "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    whole = told()
    commands = re.findall(r"^  (\w+)  ", whole.split("Commands:")[1], re.MULTILINE)
    assert {"explain", "compare", "run", "report", "methods", "doctor", "fetch"} <= set(commands)
    for page in (whole, *map(told, ("explain", "compare", "run"))):
        assert "..." not in page.replace("[ARGS]...", "") and max(map(len, page.splitlines())) <= 120
    assert "python -m xai_utils explain" in told("explain") and "--png" in told("compare")
    version = subprocess.run([sys.executable, "-m", "xai_utils", "--version"], capture_output=True, text=True).stdout
    assert version == f"{xai.__version__}\n"


def test_a_healthy_machine_and_a_sick_one(capsys, tmp_path, monkeypatch):
    file = tmp_path / "requirements.txt"
    file.write_text("numpy==0.0.1\nno-such-package==1.0\n# a comment\n")
    states = [(finding.state, finding.what) for finding in doctor._packages(file)]
    assert states[0] == ("fix", "not installed: no-such-package; run make setup")
    assert states[1][0] == "optional" and states[1][1].startswith(
        f"other versions than pinned: numpy {np.__version__} "
    )
    file.write_text(f"numpy=={np.__version__}\n")
    assert [finding.state for finding in doctor._packages(file)] == ["ok"]
    monkeypatch.setenv("XAI_CACHE", str(tmp_path / "empty"))
    found = [str(finding) for finding in doctor.examine()]
    assert any(line.startswith("[ok] Python 3.") for line in found)
    assert "[fix] model smollm2-135m-instruct is not fetched yet; run python -m xai_utils fetch" in found
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1 and capsys.readouterr().out.splitlines() == found
