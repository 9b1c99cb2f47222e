import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch

from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
GOOD, BAD = "hf_good_token", "hf_bad_token"


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as huggingface_hub asks for: `<root>/<repository>/<commit>/<file>`."""

    root: Path
    seen: list[str]

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.seen.append(path)
        if path.startswith("api/models/"):
            self.about(path.removeprefix("api/models/").split("/"))
        else:
            repository, _, rest = path.partition("/resolve/")
            commit, _, file = rest.partition("/")
            self.file(repository, commit, file)

    do_HEAD = do_GET

    def refuses(self, repository: str) -> bool:
        if repository == "own/broken":
            self.answer(500)
        elif repository == "own/private":
            self.answer(401, X_Error_Message="Invalid username or password.")
        elif not (self.root / repository).is_dir():
            self.answer(404, X_Error_Code="RepoNotFound")
        else:
            return False
        return True

    def about(self, parts: list[str]) -> None:
        repository = "/".join(parts[:2])
        if self.refuses(repository):
            return
        if parts[2:3] == ["tree"]:
            folder = self.root / repository / parts[3]
            files = [path for path in folder.rglob("*") if path.is_file()]
            listing = [
                {
                    "type": "file",
                    "path": str(path.relative_to(folder)),
                    "size": path.stat().st_size,
                    "oid": digest(path),
                }
                for path in files
            ]
            return self.answer(200, json.dumps(listing).encode())
        revision = parts[3] if parts[2:3] == ["revision"] else "main"
        if revision not in COMMITS:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        self.answer(200, json.dumps({"id": repository, "sha": COMMITS[revision], "siblings": []}).encode())

    def file(self, repository: str, commit: str, file: str) -> None:
        if self.refuses(repository):
            return
        if repository == "own/gated" and self.headers.get("Authorization") != f"Bearer {GOOD}":
            return self.answer(403 if "Authorization" in self.headers else 401, X_Error_Code="GatedRepo")
        path = self.root / repository / commit / file
        if not path.is_file():
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        body = path.read_bytes()
        if repository == "own/short" and self.command == "GET":
            body = body[:10]
        self.answer(200, body, ETag=f'"{digest(path)}"', X_Repo_Commit=commit)

    def log_message(self, *_: object) -> None:
        pass


def digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Hub]]:
    root = tmp_path_factory.mktemp("hub")
    for seed, commit in enumerate(COMMITS.values()):
        save_tiny(root / "own" / "tiny" / commit, seed=seed)
    main = root / "own" / "tiny" / COMMITS["main"]
    (main / "onnx").mkdir()
    (main / "onnx" / "model.safetensors").write_bytes(b"another format")
    (main / "consolidated.safetensors").write_bytes(b"the same weights again")
    (main / "pytorch_model.bin").write_bytes(b"pickled")
    for name in ("gated", "short"):
        shutil.copytree(root / "own" / "tiny", root / "own" / name)
    tiny_tokenizer(bos=True).save_pretrained(root / "own" / "words" / COMMITS["main"])
    Hub.root, Hub.seen = root, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield Hub
    server.shutdown()


SNAPSHOTS = """
import json, sys
from xai_utils.models.hub import MODEL_FILES, TOKENIZER_FILES, snapshot
from xai_utils.errors import UserError
for repository, revision in json.loads(sys.argv[1]):
    try:
        folder, commit = snapshot(repository, revision, TOKENIZER_FILES if repository == "own/words" else MODEL_FILES)
        said = {"folder": str(folder), "commit": commit}
    except UserError as error:
        said = {"error": str(error)}
    print("said " + json.dumps(said))
"""
LOADED = """
import json, sys, torch
from xai_utils.models.loading import load
from xai_utils.models.entry import ModelEntry
for model, revision, tokenizer in json.loads(sys.argv[1]):
    loaded = load(ModelEntry(label="m", model=model, revision=revision, tokenizer=tokenizer))
    logits = loaded.model(torch.tensor([[0, 70, 300, 5]])).logits[0, -1, :3].tolist()
    print("said " + json.dumps({"revision": loaded.revision, "logits": logits, "start": loaded.document_start}))
"""
TINY, V1, COMMIT, WORDS = ("own/tiny", None), ("own/tiny", "v1"), ("own/tiny", "b" * 40), ("own/words", None)
CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens
Said = list[dict[str, Any]]


def ask(endpoint: str, home: Path, *entries: tuple[Any, ...], code: str = SNAPSHOTS, **environment: str) -> Said:
    """Ask in a process of its own, since huggingface_hub reads its settings when it is imported."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    own |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **environment}
    command = [sys.executable, "-c", code, json.dumps(entries)]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for token in (GOOD, BAD):
        assert token not in done.stdout + done.stderr
    said = [json.loads(line.removeprefix("said ")) for line in done.stdout.splitlines() if line.startswith("said ")]
    assert len(said) == len(entries) and not any("\n" in answer.get("error", "") for answer in said)
    return said


def error(endpoint: str, home: Path, repository: str, revision: str | None = None, **environment: str) -> str:
    [said] = ask(endpoint, home, (repository, revision), **environment)
    return said["error"]


@pytest.fixture(scope="module")
def filled(hub: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A Hub cache after two revisions of a model and another's tokenizer, and what was said."""
    home = tmp_path_factory.mktemp("home")
    return home, ask(hub.url, home, TINY, V1, COMMIT, WORDS)


def test_present_with_its_commit(filled: tuple[Path, Said]) -> None:
    main, tag, commit, words = filled[1]
    assert (main["commit"], tag["commit"], words["commit"]) == ("a" * 40, "b" * 40, "a" * 40)
    assert commit == tag
    names = {path.name for path in Path(words["folder"]).iterdir()}
    assert "tokenizer.json" in names and "model.safetensors" not in names


def test_only_what_is_needed_is_fetched(hub: Any, filled: tuple[Path, Said]) -> None:
    asked = [path for path in hub.seen if "/resolve/" in path]
    names = {path.rsplit("/", 1)[-1] for path in asked}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "consolidated.safetensors"} and not any("onnx" in path for path in asked)


def test_a_hub_model_computes_what_was_uploaded(hub: Any, filled: tuple[Path, Said]) -> None:
    def logits(seed: int) -> list[float]:
        with torch.no_grad():
            return tiny_model(seed=seed)(torch.tensor([[0, 70, 300, 5]])).logits[0, -1, :3].tolist()

    main, tag, words = ask(
        hub.url,
        filled[0],
        ("own/tiny", None, None),
        ("own/tiny", "v1", None),
        ("own/tiny", None, "own/words"),
        code=LOADED,
    )
    assert main["revision"] == "a" * 40 and main["logits"] == pytest.approx(logits(0), rel=1e-4)
    assert tag["revision"] == "b" * 40 and tag["logits"] == pytest.approx(logits(1), rel=1e-4)
    assert words["revision"] == f"{'a' * 40}+tokenizer:{'a' * 40}"
    assert (main["start"], words["start"]) == (0, None)


def test_offline_with_the_cache(filled: tuple[Path, Said]) -> None:
    home, online = filled
    assert ask(CLOSED, home, TINY, V1, COMMIT) == online[:3]
    assert ask(CLOSED, home, TINY, V1, COMMIT, HF_HUB_OFFLINE="1") == online[:3]


def test_offline_without_the_cache(tmp_path: Path, filled: tuple[Path, Said]) -> None:
    down = error(CLOSED, tmp_path, "own/tiny", "v1")
    assert f"own/tiny at revision v1 is not in the local cache and {CLOSED} cannot be asked; connect to the net" in down
    off = error(CLOSED, filled[0], "own/other", HF_HUB_OFFLINE="1")
    assert "own/other is not in the local cache" in off and "unset HF_HUB_OFFLINE" in off


def test_gated(hub: Any, tmp_path: Path) -> None:
    said = f"own/gated is gated; accept its terms on {hub.url}/own/gated, then set HF_TOKEN"
    assert said in error(hub.url, tmp_path, "own/gated")
    assert said in error(hub.url, tmp_path, "own/gated", HF_TOKEN=BAD)
    [admitted] = ask(hub.url, tmp_path, ("own/gated", None), HF_TOKEN=GOOD)
    assert admitted["commit"] == "a" * 40 and (Path(admitted["folder"]) / "model.safetensors").exists()


def test_what_the_hub_refuses(hub: Any, tmp_path: Path) -> None:
    names = ["own/missing", "smollm2-135m-instruc", "own/private", "own/broken", "own/short"]
    said = ask(hub.url, tmp_path, *[(name, None) for name in names], ("own/tiny", "v9"))
    missing, misspelt, private, broken, short, revision = [answer["error"] for answer in said]
    assert "own/missing is no folder here and no model on the Hub" in missing
    assert "did you mean 'smollm2-135m-instruct'?" in misspelt
    assert "the Hub answered 401 for own/private; set HF_TOKEN" in private
    assert "own/broken is not in the local cache" in broken
    assert "own/short could not be fetched" in short
    assert f"own/tiny has no revision 'v9'; give a branch, a tag or a commit hash of {hub.url}/own/tiny" in revision


def test_a_hub_cache_that_cannot_be_written(hub: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = error(hub.url, tmp_path / "file", "own/tiny")
    assert "cannot write to the cache" in said and "HF_HOME" in said
