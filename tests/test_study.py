"""Study files: what is read, and the one line that each wrong file is answered with."""

import json
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xai_utils.errors import UserError, nearest
from xai_utils.fields import text_problem
from xai_utils.files import ROOT, locate
from xai_utils.models.entry import ModelEntry
from xai_utils.study.config import PUBLISHED, Study, load_study
from xai_utils.study.results import folders
from xai_utils.text.entry import TextEntry

MODEL = "models: [{label: base, model: smollm2-135m-instruct}]\n"
TEXT = 'texts: [{id: a, text: "The capital of France is"}]\n'


@pytest.fixture
def write(tmp_path):
    def _write(content: str | bytes, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


def test_the_smallest_study_has_the_documented_defaults(write):
    study = load_study(write(MODEL + TEXT))
    assert study.name == "mine" and not study.published
    assert study.models[0].role == "base" and study.models[0].dtype == "float32" and study.models[0].device == "auto"
    assert (study.prefix, study.target, study.baseline, study.keep_sink) == ("document_start", "logprob", "zero", True)
    assert (study.tolerance, study.budget, study.max_tokens, study.seed) == (0.01, 1024, 128, 0)
    assert (study.steps, study.sigma, study.draws) == (50, 0.1, 30)  # the original's


def test_every_key_is_read(write):
    study = load_study(
        write(
            """
models:
  - {label: base, role: base, model: org/name, revision: abc, dtype: bfloat16, device: "cuda:1", tokenizer: t}
  - {label: ru-ts, role: control, model: org/name, adapter: models/ru, rows: shuffled, document_start: <s>}
texts:
  - {id: capital, text: "The capital of France is", answer: " Paris.", contrast: " London.", pair: capital-ru,
     rewordings: ["France's capital city is"], chat: true, language: no, group: fact, target: contrast}
prefix: none
target: sum_logits
baseline: eos
keep_sink: false
tolerance: 1e-3
budget: 48
max_tokens: 64
normalisation: NFKC
methods: [integrated_gradients]
steps: 20
draws: 5
sigma: 1
seed: 7
"""
        )
    )
    assert study.models[0].revision == "abc" and study.models[0].device == "cuda:1"
    assert study.models[1].rows == "shuffled" and study.models[1].document_start == "<s>"
    text = study.texts[0]
    assert text.answer == " Paris." and text.contrast == " London." and text.chat and text.target == "contrast"
    assert text.language == "no"  # Norwegian, not false as in YAML 1.1
    assert text.rewordings == ("France's capital city is",)
    assert study.tolerance == 0.001 and study.sigma == 1.0 and study.seed == 7 and not study.keep_sink


def test_the_studies_of_the_repository_load():
    files = sorted((ROOT / "studies").glob("*.yaml"))
    assert {"llama", "small"} <= {load_study(file).name for file in files}
    for file in files:
        study = load_study(file)
        assert study.published == (file.name in ("default.yaml", "lora.yaml"))
        assert study.leads == (file.name == "default.yaml")


def test_published_studies_share_the_committed_folders_and_overwrite_nothing_of_each_other(monkeypatch, tmp_path):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    found = {name: folders(load_study(f"studies/{name}.yaml")) for name in ("default", "lora", "small")}
    assert (found["default"].figs, found["lora"].figs) == (ROOT / "figs", ROOT / "figs" / "lora")
    assert (found["default"].tables, found["lora"].tables) == (ROOT / "report/tables", ROOT / "report/tables/lora")
    assert found["default"].blog == ROOT / "report/blog" and found["lora"].blog == tmp_path / "lora/report/blog"
    assert found["small"].figs == tmp_path / "small/figs" and found["default"].data == tmp_path / "default/data"
    assert all(found[name].notebooks == ROOT / "notebooks" for name in ("default", "lora"))
    assert not set.intersection(*(set(load_study(file).notebooks) for file in PUBLISHED))


def test_the_original_pair_is_two_ids_away():
    study = load_study("studies/llama.yaml")
    assert [model.model for model in study.models] == ["meta-llama/Llama-3.2-1B-Instruct", "ikkiren/research_TS"]
    assert study.texts[0].text == "Сколько планет в Солнечной системе?" and study.texts[0].target == "sum_logits"


MERGES = "".join(
    f"k{n}: &k{n} {{<<: [{', '.join([f'*k{n - 1}'] * 9)}], a{n}: 1}}\n" if n else "k0: &k0 {a: 1}\n" for n in range(9)
)
LISTS = "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9) if n else 1}]\n" for n in range(12)) + "models: *k11"
WRONG = {
    "unknown key, nearest named": (MODEL + TEXT + "tolerence: 1", "tolerence: unknown key; did you mean 'tolerance'?"),
    "unknown key in a model": (
        "models: [{label: a, model: m, revison: x}]\n" + TEXT,
        "models[0].revison: unknown key; did you mean 'revision'?",
    ),
    "unknown key in a text": (
        MODEL + "texts: [{id: a, text: b, anwser: c}]",
        "texts[0].anwser: unknown key; did you mean 'answer'?",
    ),
    "a key of ours": (MODEL + TEXT + "name: x", "name: unknown key"),
    "wrong type: number for text": (
        MODEL + "texts: [{id: a, text: 12}]",
        "texts[0].text: expected text, got a whole number (12); put it in quotes",
    ),
    "wrong type: text for list": (MODEL + "texts: hello", "texts: expected a list, got text ('hello')"),
    "wrong type: text for mapping": (MODEL + "texts: [hello]", "texts[0]: expected a mapping of keys, got text"),
    "wrong type: text for number": (
        MODEL + TEXT + "budget: many",
        "budget: expected a whole number, got text ('many')",
    ),
    "wrong type: fraction": (MODEL + TEXT + "budget: 1.5", "budget: expected a whole number, got a number (1.5)"),
    "wrong type: flag": (MODEL + TEXT + "keep_sink: yes", "keep_sink: expected true or false, got text ('yes')"),
    "wrong type: flag for number": (MODEL + TEXT + "seed: true", "seed: expected a whole number, got a truth value"),
    "unknown choice": (
        MODEL + TEXT + "baseline: pad",
        "baseline: expected 'mean', 'zero', 'eos', 'space' or 'sampled'",
    ),
    "tolerance not positive": (MODEL + TEXT + "tolerance: 0", "tolerance: input should be greater than 0, got 0"),
    "tolerance infinite": (MODEL + TEXT + "tolerance: .inf", "tolerance: input should be a finite number"),
    "no budget": (MODEL + TEXT + "budget: 0", "budget: input should be greater than or equal to 1"),
    "negative seed": (MODEL + TEXT + "seed: -1", "seed: input should be greater than or equal to 0"),
    "empty text": (MODEL + 'texts: [{id: a, text: ""}]', "texts[0].text: '': it is empty"),
    "blank text": (MODEL + 'texts: [{id: a, text: " \\n "}]', "it is empty; write at least one visible character"),
    "invisible text": (MODEL + 'texts: [{id: a, text: "\\u200b"}]', "nothing in it can be seen"),
    "control characters": (
        MODEL + 'texts: [{id: a, text: "b\\x07"}]',
        r"texts[0].text: 'b\x07': it holds the control character U+0007 at character 1; remove it",
    ),
    "control character in an answer": (MODEL + 'texts: [{id: a, text: b, answer: "\\e[0m"}]', "texts[0].answer: "),
    "raw control character": (MODEL + "texts: [{id: a, text: b\x07}]", "control character U+0007; remove it"),
    "half a surrogate pair": (MODEL + 'texts: [{id: a, text: "b\\uD800"}]', "half of a surrogate pair U+D800"),
    "a label that is no file name": (
        "models: [{label: a/b, model: m}]\n" + TEXT,
        "models[0].label: 'a/b': not usable as a file name",
    ),
    "a label that is reserved": ("models: [{label: NUL, model: m}]\n" + TEXT, "not usable as a file name"),
    "a label that climbs": ("models: [{label: .., model: m}]\n" + TEXT, "not usable as a file name"),
    "a label with a space": ("models: [{label: a b, model: m}]\n" + TEXT, "not usable as a file name"),
    "two models with one label": (
        "models: [{label: a, model: m}, {label: A, model: n}]\n" + TEXT,
        "models[1]: has the label 'A' of models[0]; give each its own",
    ),
    "two texts with one id": (
        MODEL + "texts: [{id: a, text: b}, {id: c, text: d}, {id: a, text: e}]",
        "texts[2]: has the id 'a' of texts[0]",
    ),
    "a method twice": (
        MODEL + TEXT + "methods: [ablation, ablation]",
        "methods[1]: has the name 'ablation' of methods[0]",
    ),
    "no methods": (MODEL + TEXT + "methods: []", "methods: the list is empty; give at least one"),
    "no models": ("models: []\n" + TEXT, "models: the list is empty; give at least one"),
    "models missing": (TEXT, "models: missing"),
    "texts missing": (MODEL, "texts: missing"),
    "nothing after a key": (MODEL + "texts:", "texts: expected a list, got nothing"),
    "a key given twice": (
        MODEL + TEXT + MODEL,
        "line 3, column 1: not readable as YAML: the key 'models' is given twice",
    ),
    "a contrast target without one": (
        MODEL + TEXT + "target: contrast",
        "texts[0].contrast: missing; the target 'contrast' needs it in text 'a'",
    ),
    "contrast with itself": (
        MODEL + "texts: [{id: a, text: b, answer: c, contrast: c}]",
        "answer and contrast are both",
    ),
    "rows without adapter": ("models: [{label: a, model: m, rows: initial}]\n" + TEXT, "this entry has no adapter"),
    "unknown device": (
        "models: [{label: a, model: m, device: gpu}]\n" + TEXT,
        "models[0].device: 'gpu': expected auto, cpu",
    ),
    "unknown dtype": ("models: [{label: a, model: m, dtype: int8}]\n" + TEXT, "models[0].dtype: expected 'float32'"),
    "broken YAML": ("models: [{label: a\ntexts: ]", "line 2, column 6: not readable as YAML: expected"),
    "not a mapping": ("- a\n- b", "expected the keys models and texts at the top, got a list"),
    "an empty file": ("", "expected the keys models and texts at the top, got nothing"),
    "not UTF-8": (b"models: \xff\xfe", "byte 8 is not UTF-8; save the file as UTF-8"),
    "code in YAML": (
        "models: !!python/object/apply:os.system ['exit 3']",
        "could not determine a constructor for the tag",
    ),
    "a list in itself": ("models: &a [*a]\n" + TEXT, "models[0]: expected a mapping of keys"),
    "too deep": ("[" * 10_000, "not readable as YAML: its lists or mappings are nested too deep"),
    "an unknown method": (
        MODEL + TEXT + "methods: [ablation, ablatoin]",
        "methods[1]: unknown method 'ablatoin'; did",
    ),
    "too few draws for an error": (
        MODEL + TEXT + "draws: 2",
        "draws: input should be greater than or equal to 3",
    ),
    "a prompt without a word": (
        MODEL + TEXT + "max_tokens: 1",
        "max_tokens: input should be greater than or equal",
    ),
    "an absence twice": (MODEL + TEXT + "absences: [mean, mean]", "absences[1]: has the name 'mean' of absences[0]"),
    "an unknown absence": (MODEL + TEXT + "absences: [gone]", "absences[0]: expected 'dropped', 'hidden', 'mean'"),
    "no absence": (MODEL + TEXT + "absences: []", "absences: the list is empty; give at least one"),
    "claims of nobody": (MODEL + TEXT + "claims: mine", "claims: expected 'original', got 'mine'"),
    "one label written in two ways": (
        "models: [{label: \u8c48, model: m}, {label: \uf900, model: n}]\n" + TEXT,
        "models[1]: has the label",
    ),
    "a bomb of merges": (MERGES, "its aliases unfold to more than 10000 values; write out what they stand for"),
    "a bomb of lists": (LISTS, "its aliases unfold to more than 10000 values"),
}


@pytest.mark.parametrize(("content", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_study_is_told_in_one_line(write, content, expected):
    path = write(content)
    with pytest.raises(UserError) as caught:
        load_study(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and expected in message
    assert message.isprintable() and len(message) < len(str(path)) + 300


def test_a_bomb_is_told_at_once(write):
    """Nine aliases in nine lines stand for 400 million values: what is written is counted, not what it unfolds to."""
    start = time.process_time()
    for bomb in (MERGES, LISTS):
        with pytest.raises(UserError):
            load_study(write(bomb))
    assert time.process_time() - start < 5


def test_aliases_that_stand_for_little_are_read(write):
    study = load_study(
        write(
            "models:\n  - &one {label: a, model: m, dtype: bfloat16}\n  - {<<: *one, label: b}\n"
            "texts: [{id: a, text: &t hello}, {id: b, text: *t}]\n"
        )
    )
    assert [(model.label, model.dtype) for model in study.models] == [("a", "bfloat16"), ("b", "bfloat16")]
    assert study.texts[1].text == "hello"


def test_several_faults_name_the_first_and_count_the_rest(write):
    with pytest.raises(UserError, match=r"budget: .*, got 0 \(and 2 more to mend after this\)$"):
        load_study(write(MODEL + TEXT + "budget: 0\nsteps: 0\ndraws: 0"))


def test_a_missing_file_names_the_nearest_one():
    with pytest.raises(
        UserError, match=r"^studies/smal.yaml: no such study file; did you mean 'studies/small.yaml'\?$"
    ):
        load_study("studies/smal.yaml")


def test_a_folder_is_not_a_study(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_study(tmp_path)


def test_a_file_name_that_cannot_name_results(write):
    with pytest.raises(UserError, match="name: 'a b': not usable as a file name"):
        load_study(write(MODEL + TEXT, "a b.yaml"))


@pytest.mark.parametrize("name", ["default", "lora"])
def test_the_published_names_are_taken(write, name):
    with pytest.raises(UserError, match=f"the name '{name}' is a published study's"):
        load_study(write(MODEL + TEXT, f"{name}.yaml"))


def test_paths_are_found_from_elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert locate("studies/small.yaml") == ROOT / "studies/small.yaml"
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/small.yaml").write_text(MODEL + TEXT)
    assert locate("studies/small.yaml").resolve() == tmp_path / "studies/small.yaml"


def test_a_study_cannot_be_changed_after_it_was_read():
    study = load_study("studies/small.yaml")
    with pytest.raises(ValueError, match="frozen"):
        study.seed = 3
    assert hash(study) == hash(load_study("studies/small.yaml"))


def test_markup_is_text_like_any_other(write):
    markup = '<script>alert("1")</script> {{ 7*7 }} $x^2$ *bold* [a](b) %d \\n'
    study = load_study(write(MODEL + f"texts: [{{id: a, text: {json.dumps(markup)}}}]"))
    assert study.texts[0].text == markup


@given(st.text(min_size=1))
def test_a_text_is_refused_exactly_when_it_shows_nothing_or_holds_controls(text):
    controls = [c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\r\n"]
    visible = [c for c in text if not c.isspace() and unicodedata.category(c)[0] not in "CZ"]
    assert (text_problem(text) is not None) == bool(controls or not visible)


@given(st.sampled_from(sorted(ModelEntry.model_fields) + sorted(TextEntry.model_fields)), st.data())
def test_a_key_with_two_letters_swapped_finds_its_way(key, data):
    if len(key) < 5:
        return
    fields = ModelEntry.model_fields if key in ModelEntry.model_fields else TextEntry.model_fields
    i = data.draw(st.integers(0, len(key) - 2))
    typo = key[:i] + key[i + 1] + key[i] + key[i + 2 :]
    if typo not in fields:
        assert nearest(typo, fields) == f"did you mean {key!r}?"


def test_every_field_of_a_study_is_shown_in_a_message_about_an_unknown_one(write):
    with pytest.raises(UserError) as caught:
        load_study(write(MODEL + TEXT + "zzzzzz: 1"))
    assert all(name in str(caught.value) for name in Study.model_fields if name not in ("name", "published"))
