"""Free text in English and Russian out of Debian packages, read from the package files without installing anything.

Many packages hold the same document in both languages (a manual and its translation, or an .mo file of sentence
pairs), so both halves of a document carry one name and can be held out together. What this does not do: judge the
text (corpus.py).
"""

import gettext
import gzip
import html
import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from xai_utils.errors import UserError

Pair = tuple[list[str], list[str]]
NEVER = r"$^"


@dataclass(frozen=True)
class Source:
    """Some packages of one kind. Group 1 of a pattern is the document's name, the same in both languages."""

    kind: str
    packages: tuple[str, ...]
    licence: str
    read: Callable[[bytes], list[str]] | Callable[[bytes], Pair]
    russian: str
    english: str | None = None


@dataclass(frozen=True)
class Document:
    """The paragraphs of one document in one language, as they stand in the package."""

    kind: str
    package: str
    name: str
    language: str
    paragraphs: tuple[str, ...]


# ---- readers: bytes of a file -> paragraphs

_BREAKS = frozenset(
    [
        "p",
        "li",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "dt",
        "dd",
        "td",
        "th",
        "title",
        "desc",
        "item",
        "div",
        "section",
        "pre",
        "tr",
        "table",
        "ul",
        "ol",
        "body",
        "note",
    ]
)
_SILENT = frozenset(
    ["script", "style", "pre", "nav", "header", "footer", "aside", "info", "code", "screen", "programlisting"]
)
_VOID = frozenset(["br", "img", "meta", "link", "input", "hr", "col"])


class _Markup(HTMLParser):
    """Text of HTML or Mallard, cut at block elements, without code, navigation and page furniture."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = [""]
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BREAKS:
            self.paragraphs.append("")
        kinds = (dict(attrs).get("class") or "").split()
        furniture = tag in _SILENT or tag == "div" and {"navheader", "navfooter", "relatedtopics"} & set(kinds)
        if self.silent or furniture:
            self.silent += [] if tag in _VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _BREAKS:
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.silent:
            del self.silent[len(self.silent) - 1 - self.silent[::-1].index(tag) :]
        if tag in _BREAKS:
            self.paragraphs.append("")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.paragraphs[-1] += data


def read_markup(data: bytes) -> list[str]:
    """Paragraphs of an HTML or Mallard page.

    >>> read_markup(b"<body><h1>One</h1><p>Two <b>three</b>.</p><pre>x = 1</pre></body>")
    ['One', 'Two three.']
    """
    parser = _Markup()
    parser.feed(data.decode("utf-8", "ignore"))
    parser.close()
    return [text for text in parser.paragraphs if text.strip()]


def read_fortunes(data: bytes) -> list[str]:
    """The sayings of a fortune file, parted by lines with a single per cent sign."""
    return re.split(r"^%\s*$", data.decode("utf-8", "ignore"), flags=re.MULTILINE)


_ROFF_KEEP = re.compile(r"^\.(?:SH|SS|B|I|BR|RB|IR|RI|BI|IB)\s+(.*)$")
_ROFF_ESCAPES = [
    (r'\\"[^\n]*', ""),
    (r"\\f(?:\(..|\[[^]]*\]|.)", ""),
    (r"\\s[-+]?\d", ""),
    (r"\\\((?:aq|cq|oq)", "'"),
    (r"\\\((?:lq|rq)|\\\[[lr]q\]", '"'),
    (r"\\\(em|\\\[em\]", "—"),
    (r"\\\(en", "–"),
    (r"\\\(bu", "•"),
    (r"\\[-]", "-"),
    (r"\\ |\\~|\\0", " "),
    (r"\\e|\\\(rs", r"\\"),
    (r"\\\*?(?:\(..|\[[^]]*\])", ""),
    (r"\\[&,/|^%:)cd]", ""),
]


def read_manual(data: bytes) -> list[str]:
    """The running text of a compressed manual page: roff requests become paragraph breaks, font changes vanish.

    >>> read_manual(gzip.compress(b".SH NAME\\nls \\\\- list a folder\\n.PP\\nSorts \\\\fBnames\\\\fP."))
    ['NAME', 'ls - list a folder', 'Sorts names.']
    """
    paragraphs, code = [""], False
    for line in gzip.decompress(data).decode("utf-8", "ignore").splitlines():
        if re.match(r"\.(nf|EX|TS)\b", line):
            code = True
        elif re.match(r"\.(fi|EE|TE)\b", line):
            code = False
        if code:
            continue
        kept = _ROFF_KEEP.match(line)
        if line.startswith((".", "'")) and not (kept and line[1:3] not in ("SH", "SS")):
            paragraphs += [kept.group(1), ""] if kept else [""]
            continue
        text = kept.group(1).replace('"', "") if kept else line
        for pattern, replacement in _ROFF_ESCAPES:
            text = re.sub(pattern, replacement, text)
        paragraphs[-1] += " " + text if paragraphs[-1] else text
    return [text for text in paragraphs if text.strip()]


def read_pairs(data: bytes) -> Pair:
    """English and Russian strings of a compiled message catalogue, without markup and accelerator marks."""
    catalogue = gettext.GNUTranslations(io.BytesIO(data))._catalog  # type: ignore[attr-defined]  # there is no public way to list it
    pairs = [(key if isinstance(key, str) else key[0], value) for key, value in catalogue.items() if key]
    english, russian = (
        [html.unescape(re.sub(r"<[^>]*>|&(?=\w)(?!\w+;)|_(?=\w)", "", side)) for side in half]
        for half in zip(*pairs, strict=True)
    )
    return [text.split("\x04")[-1].split("^")[-1] for text in english], russian


# ---- packages

_TWO_LANGUAGES = (  # of handbooks: packages, licence, Russian and English files
    (("debian-handbook",), "GPL-2+ or CC-BY-SA-3.0", r"/html/ru-RU/(.+)\.html$", r"/html/en-US/(.+)\.html$"),
    (("installation-guide-amd64",), "GPL-2", r"/\w+-guide-amd64/ru/(.+)\.html$", r"/\w+-guide-amd64/en/(.+)\.html$"),
    (("maint-guide-ru", "maint-guide"), "GPL-2+", r"/html/(.+)\.ru\.html$", r"/html/(.+)\.en\.html$"),
    (
        ("developers-reference-ru", "developers-reference"),
        "GPL-2+",
        r"/developers-reference/ru/([^/]+)\.html$",
        r"/developers-reference/([^/]+)\.html$",
    ),
    (("aptitude-doc-ru", "aptitude-doc-en"), "GPL-2+", r"/html/ru/(.+)\.html$", r"/html/en/(.+)\.html$"),
    (("debian-faq-ru", "debian-faq"), "GPL-2+", r"/FAQ/ru/(.+)\.ru\.html$", r"/FAQ/([^/]+)\.en\.html$"),
    (("debian-history",), "GPL-2+", r"/docs/(.+)\.ru\.html$", r"/docs/(.+)\.en\.html$"),
    (("kicad-doc-ru",), "GPL-3+ or CC-BY-3.0", r"/help/ru/(.+)\.html$", None),
    (("doublecmd-help-ru", "doublecmd-help-en"), "GPL-2+", r"/doc/ru/(.+)\.html$", r"/doc/en/(.+)\.html$"),
)
_CAMPAIGNS = [
    "did",
    "dm",
    "dw",
    "ei",
    "httt",
    "l",
    "low",
    "nr",
    "sof",
    "sota",
    "sotbe",
    "thot",
    "trow",
    "tsg",
    "ttb",
    "utbs",
]
_CATALOGUE = r"/ru/LC_MESSAGES/(.+)\.mo$"

SOURCES = (
    Source("aphorisms", ("fortunes-ru",), "GPL-2", read_fortunes, r"/fortunes/ru/((?!.*\.(?:dat|u8)$).+)$"),
    Source("aphorisms", ("fortunes",), "BSD-3-clause", read_fortunes, NEVER, r"/fortunes/((?!.*\.(?:dat|u8)$)[^/]+)$"),
    Source(
        "office help",
        ("libreoffice-help-ru", "libreoffice-help-en-us"),
        "MPL-2.0",
        read_markup,
        r"/help/ru/text/(.+)\.html$",
        r"/help/en-US/text/(.+)\.html$",
    ),
    Source(
        "manual pages",
        ("manpages-ru", "manpages-ru-dev", "manpages", "manpages-dev"),
        "GPL-3+ (translation), Linux-man-pages licences",
        read_manual,
        r"/man/ru/man\d/(.+)\.gz$",
        r"/man/man\d/(.+)\.gz$",
    ),
    Source(
        "desktop help",
        ("gnome-user-docs",),
        "CC-BY-SA-3.0",
        read_markup,
        r"/help/ru/(.+)\.page$",
        r"/help/C/(.+)\.page$",
    ),
    *(Source("handbooks", names, licence, read_markup, ru, en) for names, licence, ru, en in _TWO_LANGUAGES),
    Source("stories", tuple(f"wesnoth-1.16-{part}" for part in _CAMPAIGNS), "GPL-2+", read_pairs, _CATALOGUE),
    Source(
        "programs", ("freeciv-data", "krita-l10n", "digikam-data", "kdenlive-data"), "GPL-2+", read_pairs, _CATALOGUE
    ),
)


def fetch_package(package: str, folder: Path) -> Path:
    """The package's file in `folder`, downloaded by apt where it is not there yet. Raises UserError where apt fails."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UserError(
            "apt-get or dpkg-deb is missing; the corpus comes from Debian packages; run this on Debian or Ubuntu"
        )
    found = sorted(folder.glob(f"{package}_*.deb"))
    if found:
        return found[-1]
    folder.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        ["apt-get", "download", "-qq", package], cwd=folder, capture_output=True, text=True, check=False
    )
    found = sorted(folder.glob(f"{package}_*.deb"))
    if result.returncode or not found:
        reason = next((line for line in result.stderr.splitlines() if line.startswith("E:")), "apt-get failed")
        raise UserError(
            f"package {package} could not be downloaded ({reason}); expected a Debian archive with it; "
            "try `apt-get update`"
        )
    return found[-1]


def members(package_file: Path) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of every plain file of a .deb, read as a stream. Raises UserError for a damaged file."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package_file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    if member.isfile():
                        handle = archive.extractfile(member)
                        assert handle is not None
                        yield member.name, handle.read()
        except tarfile.TarError:
            raise UserError(
                f"{package_file.name} is damaged; expected a whole Debian package; delete it and run again"
            ) from None


def documents(source: Source, package: str, package_file: Path) -> Iterator[Document]:
    """All documents of one package, in either language."""
    for path, data in members(package_file):
        russian, english = re.search(source.russian, path), re.search(source.english or NEVER, path)
        if source.read is read_pairs and russian:
            halves = read_pairs(data)
            for language, half in zip(("en", "ru"), halves, strict=True):
                yield Document(source.kind, package, f"{source.packages[0]}/{russian.group(1)}", language, tuple(half))
        elif russian or english:
            name = f"{source.packages[0]}/{(russian or english).group(1)}"  # type: ignore[union-attr]
            yield Document(source.kind, package, name, "ru" if russian else "en", tuple(source.read(data)))  # type: ignore[arg-type]
