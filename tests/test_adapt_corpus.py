"""The corpus: readers on small files, cleaning, and the split, checked by brute force."""

import gzip
import io
import random
import struct
import subprocess
import tarfile
from difflib import SequenceMatcher
from pathlib import Path

import pytest

from recipes.token_substitution import corpus, sources
from recipes.token_substitution.sources import Document
from xai_utils.errors import UserError


def message_catalogue(pairs: dict[str, str]) -> bytes:
    """A GNU .mo file, written by its specification (the gettext manual, "The Format of GNU MO Files")."""
    items = sorted((key.encode(), value.encode()) for key, value in pairs.items())
    count, start = len(items), 28 + 16 * len(items)
    texts, tables = b"", [b"", b""]
    for side in (0, 1):
        for item in items:
            tables[side] += struct.pack("<II", len(item[side]), start + len(texts))
            texts += item[side] + b"\0"
    return struct.pack("<7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0) + tables[0] + tables[1] + texts


def debian_package(path: Path, files: dict[str, bytes]) -> Path:
    """A .deb with these files and nothing else."""
    root = path.with_suffix("")
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: small\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: small\n"
    )
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(root), str(path)], check=True, capture_output=True)
    return path


def test_pairs_of_a_catalogue_lose_markup() -> None:
    data = message_catalogue(
        {"": "Content-Type: text/plain; charset=UTF-8\n", "&Open <b>it</b>": "&Открыть <b>это</b>"}
    )
    assert sources.read_pairs(data) == (["Open it"], ["Открыть это"])


def test_markup_leaves_code_and_navigation_out() -> None:
    page = (
        "<html><script>x</script><nav>Меню</nav><div class='navheader'><p>Назад</p></div><p>Один&nbsp;<i>два</i><br>три"
    )
    assert [corpus.clean(text) for text in sources.read_markup(page.encode())] == ["Один дватри"]


def test_manual_pages_leave_examples_out() -> None:
    page = '.TH X 1\n.SH "ИМЯ"\nls \\- \\(lqсписок\\(rq\n.nf\nint x;\n.fi\n.BR chmod (2)\nменяет \\fIправа\\fP.'
    assert sources.read_manual(gzip.compress(page.encode())) == ['"ИМЯ"', 'ls - "список"', "chmod (2) меняет права."]


def test_documents_of_a_package(tmp_path: Path) -> None:
    data = message_catalogue({"": "Content-Type: text/plain; charset=UTF-8\n", "Good morning": "Доброе утро"})
    package = debian_package(tmp_path / "small_1_all.deb", {"usr/ru/LC_MESSAGES/game.mo": data, "usr/other": b"x"})
    source = sources.Source("stories", ("small",), "GPL-2+", sources.read_pairs, r"/ru/LC_MESSAGES/(.+)\.mo$")
    found = list(sources.documents(source, "small", package))
    assert found == [
        Document("stories", "small", "small/game", "en", ("Good morning",)),
        Document("stories", "small", "small/game", "ru", ("Доброе утро",)),
    ]


def test_a_damaged_package_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "small_1_all.deb"
    file.write_bytes(b"no package")
    with pytest.raises(UserError, match="damaged"):
        list(sources.members(file))


def test_without_apt_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Debian"):
        sources.fetch_package("fortunes-ru", tmp_path)


def test_what_apt_says_is_kept_to_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {
        "apt-get": "echo 'W: noise' >&2; echo 'E: no such package' >&2; exit 100",
        "dpkg-deb": "",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError) as error:
        sources.fetch_package("no-such", tmp_path / "packages")
    assert "E: no such package" in str(error.value) and "\n" not in str(error.value)


def test_a_streamed_archive_gives_plain_files_alone(tmp_path: Path) -> None:
    package = debian_package(tmp_path / "small_1_all.deb", {"usr/a": b"1", "usr/b/c": b"2"})
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        expected = [member.name for member in archive.getmembers() if member.isfile()]
    assert [name for name, _ in sources.members(package)] == expected


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Это обычное русское предложение.", "ru", True),
        ("This is an ordinary sentence.", "ru", False),
        ("This is an ordinary sentence.", "en", True),
        ("Это обычное русское предложение.", "en", False),
        ("Два слова", "ru", False),
        ("1 2 3 4 5 6 7 + — 8 (9) да, так и есть", "ru", False),
    ],
)
def test_what_belongs(text: str, language: str, expected: bool) -> None:
    assert corpus.belongs(text, language) is expected


def small_documents() -> list[Document]:
    """Thirty documents: a sentence of their own each, and two that come again elsewhere, one with a word changed."""
    animals = ("кошка", "собака", "лошадь", "корова", "овца", "коза", "утка", "лиса", "мышь", "белка")
    random_ = random.Random(0)
    made = []
    for number in range(30):
        own = " ".join("".join(random_.choices("абвгдежзик", k=6)) for _ in range(9)) + "."
        near = f"Однажды ранним утром {animals[number % 10]} вышла из дома и пошла в тёмный лес за грибами."
        paragraphs = (own, near, "Для продолжения нажмите любую клавишу на клавиатуре.")
        made.append(Document(("tales", "manuals")[number % 2], "small", f"small/{number}", "ru", paragraphs))
    return made


def test_the_split_has_no_leak() -> None:
    texts = corpus.split(small_documents(), share=0.1)
    train = [text for text in texts if text.split == "train"]
    held_out = [text for text in texts if text.split == "held-out"]
    assert train and held_out
    assert not {text.name for text in train} & {text.name for text in held_out}
    unseen = [part for text in held_out for part in corpus.sentences(text.text)]
    for part in (part for text in train for part in corpus.sentences(text.text)):
        likeness = max(SequenceMatcher(None, part.lower().split(), other.lower().split()).ratio() for other in unseen)
        assert likeness < 0.8, part


def test_no_paragraph_comes_twice() -> None:
    lines = [line for text in corpus.split(small_documents()) for line in text.text.split("\n")]
    assert len(lines) == len({corpus.key_of(line) for line in lines})


def test_overlap_counts_word_grams_by_hand() -> None:
    known = corpus.grams(corpus.key_of("один два три четыре пять шесть"))
    assert corpus.overlap("Один, два, три — четыре! И пять.", known) == pytest.approx(1 / 3)
    assert corpus.overlap("Шесть", known) == 0.0


def test_both_halves_of_a_document_are_held_out_together() -> None:
    made = [
        Document("tales", "small", f"small/{number}", language, (f"{word * 3} {word} {word * 2} {'x' * 5}" + "а" * 9,))
        for number in range(40)
        for language, word in (("ru", chr(1072 + number % 32) * (number // 32 + 1)), ("ru", "ж" * number + "щ"))
    ]
    split = {}
    for text in corpus.split(made, share=0.3):
        assert split.setdefault(text.name, text.split) == text.split


def test_held_out_names_do_not_depend_on_order() -> None:
    names = [str(number) for number in range(400)]
    chosen = corpus.held_out_names(names, 0.1)
    assert chosen == corpus.held_out_names(reversed(names), 0.1)
    assert 20 <= len(chosen) <= 60
    assert len(corpus.held_out_names(["a", "b"], 0.0)) == 1
    assert corpus.held_out_names(["a"], 0.5) == set()


def test_too_little_russian_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "collect", lambda folder: (small_documents(), []))
    with pytest.raises(UserError, match="characters of Russian"):
        corpus.build(tmp_path)
