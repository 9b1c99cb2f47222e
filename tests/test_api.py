"""The front door: loading, wrapping what is in memory, explaining and comparing; the same numbers as a study's."""

import dataclasses
import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from peft import LoraConfig, get_peft_model

import xai_utils as xai
from tests.tiny import save_tiny, tiny_loaded, tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf
from xai_utils.attribution.absence import with_common_mean
from xai_utils.attribution.methods import METHODS
from xai_utils.attribution.target import Objective
from xai_utils.errors import UserError
from xai_utils.study.config import Study, load_study

TEXT, ANSWER = "The capital of France is", " Paris."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return xai.load(str(folder))


def lora(seed: int = 0, **config):
    """A tiny model under a LoRA whose product is not zero."""
    base = tiny_model("llama", seed)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **config))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(seed))
    return adapted


def test_importing_the_kit_imports_no_library():
    code = (
        "import sys, xai_utils; dir(xai_utils); print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    assert all(getattr(xai, name) is not None for name in xai.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        xai.lode  # noqa: B018


def test_every_keyword_has_the_study_s_default():
    own = {name: field.default for name, field in Study.model_fields.items()}
    own["absence"] = own["absences"][0]
    for name, method in METHODS.items():
        for key, parameter in inspect.signature(method.function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert key in method.fixed or parameter.default == own.get(key, parameter.default), (name, key)
    for function in (xai.explain, xai.compare):
        for key, parameter in inspect.signature(function).parameters.items():
            if key in own:
                assert parameter.default == own[key], key


@pytest.mark.parametrize(
    "method",
    ["panel_shapley", "integrated_gradients", "fixed_steps", "ablation", "zero_ablation", "sensitivity", "rollout"],
)
def test_the_front_door_gives_the_numbers_of_a_study(folder, model, method, tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_RUNS", str(tmp_path))
    file = tmp_path / "one.yaml"
    file.write_text(
        f"models:\n  - {{label: tiny, model: {folder}}}\n"
        f"texts:\n  - {{id: capital, text: '{TEXT}', answer: '{ANSWER}'}}\nmethods: [{method}]\n"
    )
    study = xai.Explainer(load_study(file)).attribute("tiny", "capital", method)
    found = xai.explain(TEXT, model, answer=ANSWER, method=method)
    np.testing.assert_allclose(found.word_scores, study.word_scores, atol=1e-5)
    assert (found.baseline, found.sink, found.unit, found.method) == (study.baseline, study.sink, study.unit, method)


def test_without_an_answer_the_model_s_own_next_token_is_explained(model):
    found = xai.explain(TEXT, model, method="ablation")
    ids = [0, *tiny_tokenizer()(TEXT)["input_ids"]]  # behind the document's start
    with torch.no_grad():
        own = int(tiny_model()(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    assert found.target.ids == (own,)


def test_an_explanation_carries_its_trust_card(model):
    found = xai.explain(TEXT, model, answer=ANSWER)
    whole = Objective(model, found.case, found.target)
    with torch.no_grad():
        value = whole(whole.inputs[None]).item()
    card = found.trust
    assert np.log(card.competence.probability) == pytest.approx(value, abs=1e-4)
    assert card.completeness.kind == "exact" and card.faithfulness.absences == 3
    assert f"({card.competence.level})" in repr(found) and f"({card.stability.level})" in found._repr_html_()
    assert xai.assess(model, found) == card
    long = xai.explain(" ".join(["The capital of France is"] * 2), model, answer=ANSWER, method="ablation").trust
    assert long.faithfulness.level == "unknown"  # tests of so many words are made when they are asked for


def test_settings_reach_the_method(model):
    zero = xai.explain(TEXT, model, answer=ANSWER, method="ablation", absence="zero", keep_sink=False)
    original = xai.explain(TEXT, model, answer=ANSWER, method="zero_ablation")
    np.testing.assert_array_equal(zero.word_scores, original.word_scores)
    assert xai.explain(TEXT, model, answer=ANSWER, method="ablation", prefix="none").case.tokens[0].label == "The"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": " "}, "text: ' ': it is empty; write at least one visible character"),
        ({"model": "smollm2"}, "the model is a str; expected what load"),
        ({"answer": ""}, "answer: '': it is empty"),
        ({"answer": 3}, "answer: expected text, got a whole number"),
        ({"method": "shaply"}, "unknown method 'shaply'; did you mean 'shapley'"),
        ({"target": "prob"}, "unknown target 'prob'; expected one of logprob"),
        ({"target": "contrast"}, "needs a `contrast` text"),
        ({"contrast": ANSWER}, "answer and contrast are both ' Paris.'"),
        ({"budgett": 3}, "shapley has no setting 'budgett'; did you mean 'budget'"),
        ({"budget": "many"}, "budget: expected a whole number, got text"),
        ({"budget": 0}, "budget: input should be greater than or equal to 1, got 0"),
        ({"prefix": "bos"}, "prefix: expected 'document_start' or 'none', got 'bos'"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 2"),
        ({"method": "rollout", "sigma": 1.0}, "rollout has no setting 'sigma'"),
    ],
)
def test_bad_input_is_one_line(model, arguments, message):
    given = {"text": TEXT, "model": model, "answer": ANSWER, "method": "shapley"} | arguments
    with pytest.raises(UserError) as caught:
        xai.explain(**given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "no/such/folder"}, "no such folder or file"),
        ({"name": 3}, "a int is no name of a model"),
        ({"dtype": "int8"}, "dtype: expected 'float32'"),
        ({"device": "gpu"}, "device: 'gpu': expected auto, cpu"),
        ({"label": "a/b"}, "label: 'a/b': not usable as a file name"),
        ({"adapter": "no-such-adapter"}, "adapter no-such-adapter: there is no folder"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_line(folder, arguments, message):
    with pytest.raises(UserError) as caught:
        xai.load(**{"name": str(folder)} | arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_error_in_a_notebook_is_one_line():
    from IPython.core.interactiveshell import InteractiveShell

    told = InteractiveShell().run_cell("import xai_utils as xai\nxai.explain('x', 'y')", silent=True).error_in_exec
    assert told._render_traceback_() == [f"error: {told}"]


def test_a_gguf_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XAI_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "small.gguf", "smollm", GGMLQuantizationType.F32, tiny_model("llama-tied"))
    model = xai.load(str(tmp_path / "small.gguf"))
    assert model.label == "small"
    assert np.isfinite(xai.explain(TEXT, model, method="ablation").words["score"]).all()


def test_wrapping_leaves_the_caller_s_model_as_it_was():
    given = tiny_model().train()
    before = {name: (value.clone(), value.requires_grad) for name, value in given.state_dict(keep_vars=True).items()}
    wrapped = xai.wrap(given, tiny_tokenizer())
    found = xai.explain(TEXT, wrapped, answer=ANSWER, method="integrated_gradients", budget=20)
    assert given.training and not wrapped.model.training
    for name, value in given.state_dict(keep_vars=True).items():
        assert torch.equal(value, before[name][0]) and value.requires_grad == before[name][1] and value.grad is None
    pairs = zip(given.parameters(), wrapped.model.parameters(), strict=True)
    assert all(own.data_ptr() == other.data_ptr() and not other.requires_grad for own, other in pairs)
    plain = xai.explain(TEXT, tiny_loaded(), answer=ANSWER, method="integrated_gradients", budget=20)
    np.testing.assert_allclose(found.word_scores, plain.word_scores, atol=1e-5)


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_a_peft_model_in_memory_is_explained_with_its_adapter(config):
    adapted = lora(**config).train()
    ids = torch.tensor([[0, *tiny_tokenizer()(TEXT)["input_ids"]]])
    wrapped = xai.wrap(adapted, tiny_tokenizer(), "mine")
    assert adapted.training and any("lora_B" in name for name, _ in adapted.named_parameters())
    with torch.no_grad():
        expected = adapted.eval()(input_ids=ids).logits
        with adapted.disable_adapter():
            base = adapted(input_ids=ids).logits
        got = wrapped.model(input_ids=ids).logits
    assert (got - expected).abs().max() < 1e-4 < 0.1 < (base - expected).abs().max()
    assert not any("lora" in name for name, _ in wrapped.model.named_parameters())
    shared = {parameter.data_ptr() for parameter in adapted.parameters()}
    own = [name for name, p in wrapped.model.named_parameters() if p.data_ptr() not in shared]
    assert own and all("q_proj" in name or "down_proj" in name or "lm_head" in name for name in own)


@pytest.mark.parametrize(
    "given, message",
    [
        (lambda: ("model", tiny_tokenizer()), "a str cannot be wrapped"),
        (lambda: (tiny_model(), "tokenizer"), "the tokenizer is a str"),
        (
            lambda: (tiny_model(vocab_size=100), tiny_tokenizer()),
            "token ids up to 511 and its model 100 embedding rows",
        ),
    ],
)
def test_what_cannot_be_wrapped_is_one_line(given, message):
    with pytest.raises(UserError, match=message):
        xai.wrap(*given())


def test_two_models_on_one_scale(model):
    twin = tiny_loaded("llama", seed=1, label="twin")
    pair = xai.compare(TEXT, model, twin, answer=ANSWER, method="ablation")
    words = pair.words
    np.testing.assert_allclose(words["difference"], words["twin"] - words["tiny"])
    for result, label in ((pair.base, "tiny"), (pair.other, "twin")):
        np.testing.assert_allclose(words[label], result.words["score"])
    common = torch.stack([model.embedding.mean(0), twin.embedding.mean(0)]).mean(0)  # of one vocabulary
    agreed = dataclasses.replace(model, reference=common)
    by_hand = xai.explain(TEXT, agreed, answer=ANSWER, method="ablation")
    np.testing.assert_allclose(pair.base.word_scores, by_hand.word_scores, atol=1e-5)


def test_a_difference_stands_where_every_absence_gives_it_one_sign(model):
    twin = tiny_loaded("llama", seed=1, label="twin")
    pair = xai.compare(TEXT, model, twin, answer=ANSWER, absences=("mean", "zero", "dropped"))
    by_absence = [
        [
            xai.explain(TEXT, one, answer=ANSWER, method="shapley", absence=absence).words["score"]
            for absence in ("mean", "zero", "dropped")
        ]
        for one in with_common_mean([model, twin])
    ]
    signs = np.sign(np.array(by_absence[1]) - np.array(by_absence[0]))
    stands = np.abs(signs.sum(0)) == 3
    assert pair.words["stands"].tolist() == stands.tolist()
    assert 0 < stands.sum() < len(stands)
    alone = xai.compare(TEXT, model, twin, answer=ANSWER, method="ablation")
    assert alone.words["stands"].isna().all()


def test_a_comparison_shows_itself(model):
    twin = tiny_loaded("llama", seed=1, label="twin")
    pair = xai.compare(TEXT, model, twin, answer=ANSWER, method="ablation")
    bundle = pair._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "image/png"} and bundle["image/png"].startswith(b"\x89PNG")
    for row in pair.words.itertuples():
        assert f"{row.difference:+.3g}" in bundle["text/plain"] and f"{row.difference:+.3g}" in bundle["text/html"]
    strongest = max(np.abs(pair.base.words["score"]).max(), np.abs(pair.other.words["score"]).max())
    ends = bundle["text/html"].count("#053061") + bundle["text/html"].count("#67001f")
    assert ends == 1 and strongest > 0  # one word of both sentences has the last colour


def test_comparing_without_an_answer_says_what_each_goes_on_with(model):
    twin = tiny_loaded("llama", seed=1, label="twin")
    own = [xai.explain(TEXT, one, method="ablation").target.text for one in (model, twin)]
    with pytest.raises(UserError) as caught:
        xai.compare(TEXT, model, twin)
    assert f"tiny goes on with {own[0]!r}, twin with {own[1]!r}" in str(caught.value)
    with pytest.raises(UserError, match="both models are labelled 'tiny'"):
        xai.compare(TEXT, model, model, answer=ANSWER)


def test_the_difference_is_shared_among_the_parts(model):
    twin = tiny_loaded("llama", seed=1, label="twin")
    pair = xai.compare(TEXT, model, twin, answer=ANSWER, method="ablation")
    values = [
        Objective(one, found.case, found.target)(model_inputs(one, found.case))[0].item()
        for one, found in ((model, pair.base), (twin, pair.other))
    ]
    assert pair.parts["score"].sum() == pytest.approx(values[1] - values[0], abs=1e-3)
    assert {"reading", "writing", "layers"} == set(pair.parts["kind"])
    for line in ("writing the answer", f"{pair.parts['score'].iloc[1]:+.3g} nats"):
        assert line in repr(pair)
    assert xai.compare(TEXT, model, twin, answer=ANSWER, method="ablation", parts=False).parts.empty


def model_inputs(model, case):
    return model.embed(torch.tensor(case.ids))[None]


def test_models_of_other_shapes_are_compared_by_words_alone(model):
    pair = xai.compare(TEXT, model, tiny_loaded("gpt2", label="other"), answer=ANSWER, method="ablation")
    assert pair.parts.empty and pair.words["difference"].notna().all()
    assert "bodies of different shapes" in repr(pair) and "bodies of different shapes" in pair._repr_html_()
