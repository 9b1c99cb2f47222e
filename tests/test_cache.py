import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xai_utils import files
from xai_utils.errors import UserError
from xai_utils.files import beside, cache_folder, file_sha256, finish, is_whole, locked, writing


def test_the_cache_is_where_xai_cache_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XAI_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XAI_CACHE", "~/own")
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("XAI_CACHE")
    assert cache_folder().name == "xai"


def make(folder: Path) -> None:
    (folder / "weights").write_bytes(b"12345")
    (folder / "config").write_text("{}")


def test_a_folder_is_whole_with_its_stamp_and_sizes_only(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with beside(target) as folder:
        make(folder)
        assert not is_whole(folder) and not target.exists()
        finish(folder, target)
    assert is_whole(target) and sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    (target / "weights").write_bytes(b"123")
    assert not is_whole(target)
    (target / "weights").unlink()
    assert not is_whole(target)
    assert not is_whole(tmp_path / "nowhere")
    (target / files.STAMP).write_text('{"weights": ')
    assert not is_whole(target)


def test_what_was_left_half_made_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model"
    make_half = tmp_path / ".partial-model"
    for folder in (make_half, target):
        folder.mkdir()
        (folder / "rest").touch()
    with beside(target) as folder:
        assert list(folder.iterdir()) == []
        make(folder)
        finish(folder, target)
    assert is_whole(target) and not (target / "rest").exists()


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt), beside(target) as folder:
        make(folder)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    said = "no disk space in the cache .* MB are needed and .* XAI_CACHE"
    with pytest.raises(UserError, match=said), writing(tmp_path / "models", 2 * free):
        pytest.fail("went on")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "no disk space in the cache .*HF_HOME to a folder on another disk"),
        (errno.EDQUOT, "no disk space"),
        (errno.EACCES, "cannot write to the cache .*HF_HOME to a folder that you may write"),
        (errno.EROFS, "cannot write to the cache"),
    ],
)
def test_what_the_disk_refuses_becomes_one_line(tmp_path: Path, code: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught, writing(tmp_path, variable="HF_HOME"):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_other_trouble_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "nowhere").read_text()


def test_a_cache_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot write to the cache .*file/models"),
        writing(tmp_path / "file" / "models"),
    ):
        pytest.fail("went on")


OTHER = """
import sys, time
from pathlib import Path
from xai_utils.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
    Path(sys.argv[1]).write_text("made by the other")
"""


def other(target: Path, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(target), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_waits_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = other(tmp_path / "model", 0.5)
    with locked(tmp_path / "model"):
        assert (tmp_path / "model").read_text() == "made by the other"
    assert "another process is making model: waiting" in capsys.readouterr().err
    assert process.wait() == 0


def test_a_process_that_died_holds_no_lock(tmp_path: Path) -> None:
    process = other(tmp_path / "model", 600)
    process.kill()
    process.wait()
    start = time.monotonic()
    with locked(tmp_path / "model"):
        assert time.monotonic() - start < 30


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
