from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from tests.tiny import tiny_model, tiny_tokenizer
from tests.tiny_gguf import write_gguf
from xai_utils.errors import UserError
from xai_utils.files import is_whole
from xai_utils.models import convert
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import load

IDS = torch.tensor([[0, 70, 300, 5, 411, 2, 70]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XAI_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0, Kind.Q4_1])
def test_a_gguf_file_computes_what_its_weights_compute(tmp_path: Path, kind: Kind) -> None:
    model = tiny_model("llama-tied")
    write_gguf(tmp_path / "own.gguf", "smollm", kind, model)
    loaded = load(ModelEntry(label="m", model=str(tmp_path / "own.gguf")))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    assert "quantization_config" not in loaded.model.config.to_dict()
    assert loaded.revision.startswith(convert.file_sha256(tmp_path / "own.gguf"))


def test_the_tokenizer_is_the_one_that_the_file_describes(tmp_path: Path) -> None:
    text = "Сколько планет  в 2024 году?  7 <|im_end|>"
    for pre in ("smollm", "gpt-2"):
        write_gguf(tmp_path / f"{pre}.gguf", pre, Kind.F32, tiny_model("llama-tied"))
    cut = {
        pre: load(ModelEntry(label="m", model=str(tmp_path / f"{pre}.gguf"))).tokenizer for pre in ("smollm", "gpt-2")
    }
    assert cut["gpt-2"].tokenize(text) == tiny_tokenizer().tokenize(text)
    pieces = {
        pre: [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  74²")]
        for pre, tokenizer in cut.items()
    }
    assert pieces == {"smollm": ["a", "ĠĠ", "7", "4", "Â²"], "gpt-2": ["a", "Ġ", "Ġ74Â²"]}
    for tokenizer in cut.values():
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
        assert tokenizer.model_max_length == 256


def test_an_unknown_pre_tokeniser_is_not_guessed(tmp_path: Path) -> None:
    write_gguf(tmp_path / "own.gguf", "of-tomorrow", Kind.F32, tiny_model("llama-tied"))
    with pytest.raises(UserError, match="no tokenizer that can be relied on"):
        load(ModelEntry(label="m", model=str(tmp_path / "own.gguf")))
    tiny_tokenizer().save_pretrained(tmp_path / "words")
    loaded = load(ModelEntry(label="m", model=str(tmp_path / "own.gguf"), tokenizer=str(tmp_path / "words")))
    assert loaded.tokenizer.tokenize("2024") == tiny_tokenizer().tokenize("2024")


def test_a_second_use_reads_the_converted_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "own.gguf", "smollm", Kind.F32, tiny_model("llama-tied"))
    first, revision = convert.converted(tmp_path / "own.gguf", tmp_path / "models")
    assert is_whole(first)
    monkeypatch.setattr(convert, "_convert", lambda *_: pytest.fail("converted again"))
    assert convert.converted(tmp_path / "own.gguf", tmp_path / "models") == (first, revision)


def test_an_interrupted_conversion_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "own.gguf", "smollm", Kind.F32, tiny_model("llama-tied"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(convert, "_repaired_tokenizer", interrupt)  # the weights are written by then
        convert.converted(tmp_path / "own.gguf", tmp_path / "models")
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == []
    folder, _ = convert.converted(tmp_path / "own.gguf", tmp_path / "models")
    assert is_whole(folder)


def test_no_room_for_the_converted_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "own.gguf", "smollm", Kind.F32, tiny_model("llama-tied"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10_000})())
    with pytest.raises(UserError, match="no disk space in the cache"):
        convert.converted(tmp_path / "own.gguf", tmp_path / "models")


def test_files_that_are_no_whole_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "own.gguf", "smollm", Kind.F32, tiny_model("llama-tied"))
    whole = (tmp_path / "own.gguf").read_bytes()
    for name, content in {"text": b"not a model", "half": whole[: len(whole) // 2], "empty": b""}.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.gguf cannot be") as caught:
            convert.converted(tmp_path / f"{name}.gguf", tmp_path / "models")
        assert "\n" not in str(caught.value)
