"""Templates: no number of their own, every printed number a fact, every condition both ways, plain sentences."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment, StrictUndefined, nodes
from jinja2.exceptions import UndefinedError
from markupsafe import Markup

from report import appendix, build
from report.facts import Facts, facts, numbers
from report.facts.difference import Removal
from report.facts.scope import Adaptation, Quality, Scope
from report.facts.trust import Card, Elsewhere, Sanity
from report.page import TEMPLATES, Compiled, Page, plain, significant
from report.pictures import there
from tests.synthetic import measured, with_path

PAGES = ("index.md.j2", "appendix.md.j2", "readme.md.j2", "sections/second.md.j2")
TEMPLATE_FILES = sorted(TEMPLATES.rglob("*.md.j2")) + [TEMPLATES / "common.j2", TEMPLATES / "figures.j2"]
OTHERS = {"model_card.md.j2", "lora_card.md.j2"}  # the recipes' own
WORDS, NUMBERS = 30, 4  # in a sentence, at most


# ---- filters


@pytest.mark.parametrize(
    ("source", "value", "expected"),
    [
        ("{{ x | signed }}", 1.26, "+1.3"),
        ("{{ x | signed }}", -0.04, "0.0"),
        ("{{ x | signed(2) }}", -0.04, "−0.04"),
        ("{{ x | percent }}", 0.6149, "61\u00a0%"),
        ("{{ x | percent }}", 0.01, "1\u00a0%"),
        ("{{ x | percent }}", 0.9962, "99.6\u00a0%"),
        ("{{ x | percent }}", 1.0, "100\u00a0%"),
        ("{{ x | percent }}", 9.4e-14, "under 0.01\u00a0%"),
        ("{{ x | percent }}", 1.5, "150\u00a0%"),
        ("{{ x | percent }}", 0.496, "49.6\u00a0%"),
        ("{{ x | points }}", 0.0523, "5.2 percentage points"),
        ("{{ x | sig }}", 0.6449, "0.64"),
        ("{{ x | plural('prompt', 'prompts') }}", 1, "1 prompt"),
        ("{{ x | plural('prompt', 'prompts') }}", 1200, "1,200 prompts"),
        ("{{ x }}", 4096, "4,096"),
        ("{{ x | quoted }}", " a*b", "“a\\*b”"),
        ("{{ x }}", "a|b", "a&vert;b"),
        ("{{ ['a', 'b', 'c'] | listed }}", None, "a, b and c"),
        ("{{ x | yaml }}", '{{< x >}} "', '"\\u007b\\u007b< x >}} \\""'),
    ],
)
def test_filters(source, value, expected):
    assert Page().environment.from_string(source).render(x=value) == expected


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), True, "1"])
@pytest.mark.parametrize("filtered", ["signed", "percent", "sig", "plural('a', 'b')"])
def test_what_is_no_number_cannot_be_said(value, filtered):
    with pytest.raises((TypeError, ValueError)):
        Page().environment.from_string("{{ x | " + filtered + " }}").render(x=value)


@pytest.mark.parametrize("value", [None, True, 0.5])
def test_a_bare_value_cannot_be_printed(value):
    with pytest.raises(TypeError, match="cannot be printed"):
        Page().environment.from_string("{{ x }}").render(x=value)


def test_a_fact_that_is_not_there_cannot_be_printed():
    with pytest.raises(UndefinedError):
        Page().environment.from_string("{{ missing }}").render()


def test_what_a_macro_returns_is_not_escaped_again():
    source = "{% macro m() %}{{ x }} **bold**{% endmacro %}{{ m() }}"
    assert Page().environment.from_string(source).render(x="*") == "\\* **bold**"


def test_recorded_numbers_are_those_that_are_printed():
    page = Page()
    page.environment.from_string("{{ a }} {{ b | percent }} {{ c }}").render(a=3, b=0.25, c="7")
    assert page.numbers == [(3.0, "3"), (0.25, "25\u00a0%")]


def test_plain_text_is_the_markdown_without_its_marks():
    page = Page()
    nasty = "{{< x >}} <b>*a*</b> | $x$ ` #1 www.a.b a@b:c"
    assert plain(str(page._finished(nasty))) == nasty
    assert plain("**a** *b*") == "a b"


def test_significant_digits():
    for value in (0.00123, 0.0996, 0.996, 9.96, 12.5, 99.6, 1234.0, -3.14159):
        assert float(significant(value).replace(",", "").replace("−", "-")) == pytest.approx(value, rel=0.05)


# ---- templates


def templates() -> Iterator[tuple[Path, str]]:
    for path in TEMPLATE_FILES:
        if path.name not in OTHERS:
            yield path, path.read_text(encoding="utf-8")


def test_no_template_has_a_number_of_its_own():
    for path, text in templates():
        text = re.sub(r"^---\n.*?^---\n", "", text, count=1, flags=re.DOTALL | re.MULTILINE)  # Hugo's front matter
        literal = re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", "", text, flags=re.DOTALL)
        assert re.findall(r".*\d.*", literal) == [], path.name
        tree = Environment().parse(text)
        said = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
        assert not [one for one in said if re.search(r"\d", one) and not one.endswith(".j2")], path.name
        operands = [one for test in tree.find_all(nodes.Compare) for one in (test.expr, *(op.expr for op in test.ops))]
        compared = [one for one in operands if isinstance(one, nodes.Const) and isinstance(one.value, int | float)]
        assert not compared, f"{path.name}: a number is compared in the template; make it a fact"


VARIANTS = {
    "pair": lambda: facts(measured()),
    "control": lambda: facts(measured(("base", "ru-ts", "shuffled"))),
    "one": lambda: facts(measured(("base",))),
    "two texts": lambda: facts(measured(texts=("capital", "moons"), claims=None)),
    "lora": lambda: lora(facts(with_path(measured(claims=None)))),
    "trained": lambda: trained(facts(with_path(measured()))),
    "no word apart": lambda: no_shifts(facts(measured())),
}


def no_shifts(told: Facts) -> Facts:
    return dataclasses.replace(told, words=dataclasses.replace(told.words, shifts=()))


def lora(told: Facts) -> Facts:
    layers = dataclasses.replace(told.layers, removal=Removal(5, 0.6, 0.2, 5, 6))
    return dataclasses.replace(told, swap=None, layers=layers, adaptation=Adaptation(0, 8, whole=(), parts=()))


def trained(told: Facts) -> Facts:
    """The same with what comes from an adapter's folder, from the long studies and from the adapter path's tests."""
    made = Adaptation(
        rows=4096,
        rank=0,
        whole=(Quality("ru", "all", 0.61, 0.29), Quality("en", "all", 0.0, -0.001)),
        parts=(Quality("ru", "aphorisms", 0.5, 0.1),),
    )
    sane = Sanity("rollout", 0.9, 8)
    elsewhere = Elsewhere(49, 0.84, 0.74, 0.98, 0.92, 0.81, 0.56, 0.69, better=True, fewer=True)
    cards = tuple(Card("a", *lists) for lists in product([(), ("completeness", "stability")], repeat=4))
    return dataclasses.replace(
        told,
        adaptation=made,
        trust=dataclasses.replace(told.trust, cards=cards, sanity=(sane,), insensitive=sane, elsewhere=elsewhere),
        layers=dataclasses.replace(told.layers, removal=Removal(5, 0.6, 0.2, 5, 6)),
    )


@pytest.fixture(scope="module")
def variants() -> dict[str, Facts]:
    return {name: make() for name, make in VARIANTS.items()}


def parts(found) -> dict[str, Any]:
    return appendix.parts(found, {})


RAW = {"base": Markup(""), "ru-ts": Markup("")}
NOTHING = {"tables": {}, "raw": RAW}
TOLD = {"tables": {"swap": Markup("| a |")}, "raw": {}, "second": Markup("## Second")}


def rendered(told: Facts, template: str, page: Page | None = None, **more: Any) -> tuple[str, Page]:
    return build.render(template, told, page=page, **({"figure": lambda name: Markup("")} | NOTHING | more))


@pytest.mark.parametrize("template", PAGES)
@pytest.mark.parametrize("name", VARIANTS)
def test_every_printed_number_is_a_fact(variants, name, template):
    text, page = rendered(variants[name], template)
    assert page.numbers
    known = set(numbers(variants[name]))
    assert [one for one in page.numbers if one[0] not in known] == []
    assert not re.search(r"\b(None|nan|True|False)\b", text)


def changed(value: Any, kind: Any) -> list[Any]:
    """Other values that a field of that type may hold."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        inner = [other for option in options if option is not type(None) for other in changed(value, option)]
        return ([None] if type(None) in options and value is not None else []) + (inner if value is not None else [])
    if kind is bool:
        return [not value]
    if kind is int:
        return [other for other in (0, 1, 7) if other != value]
    if kind is float:
        return [other for other in (0.0, -0.3, 0.7) if other != value]
    if kind == tuple[str | None, ...]:
        return [(None,) * len(value), (None, *value[1:])]
    if typing.get_origin(kind) is tuple and value and dataclasses.is_dataclass(typing.get_args(kind)[0]):
        return [()]
    return []


def neighbours(told: Any) -> Iterator[Any]:
    """The same facts with one field changed, however deep; of several items in a row only the first is changed."""
    if not dataclasses.is_dataclass(told):
        return
    kinds = typing.get_type_hints(type(told))
    for field in dataclasses.fields(told):
        value = getattr(told, field.name)
        if (type(told), field.name) == (Scope, "other"):
            continue  # how many models there are is not one field: see the variant with one model
        for other in changed(value, kinds[field.name]):
            yield dataclasses.replace(told, **{field.name: other})
        if isinstance(value, tuple) and value:
            for other in neighbours(value[0]):
                yield dataclasses.replace(told, **{field.name: (other, *value[1:])})
        else:
            for other in neighbours(value):
                yield dataclasses.replace(told, **{field.name: other})


class Watched(Compiled):
    """What is compiled with its conditions noted, apart from what others use."""

    kept: typing.ClassVar[dict[str, bytes]] = {}


class Watching(Environment):
    """An environment that notes of every condition in a template whether it was true, and whether it was false."""

    seen: typing.ClassVar[dict[tuple[str, int], set[bool]]] = defaultdict(set)

    def _parse(self, source, name, filename):
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.If, nodes.CondExpr)):
            self.seen[(name, node.lineno)]
            place = [nodes.Const(name), nodes.Const(node.lineno)]
            node.test = nodes.Call(nodes.Name("_noted", "load"), [*place, node.test], [], None, None)
        nodes.Node.set_environment(tree, self)
        return tree


@pytest.fixture
def watching(monkeypatch):
    def made(**settings):
        found = Watching(**settings | {"bytecode_cache": Watched()})
        found.globals["_noted"] = noted
        return found

    def noted(name, line, value):
        Watching.seen[(name, line)].add(bool(value))
        return value

    monkeypatch.setattr("report.page.Environment", made)
    Watching.seen.clear()
    return Watching.seen


def test_every_condition_is_rendered_both_ways(variants, watching):
    """Facts of several studies and all that differ in one field: whatever their types allow must be sayable."""
    tried, page = 0, Page()
    for name, told in variants.items():
        for one in [told, *neighbours(told)]:
            more = TOLD if tried % 2 else NOTHING
            for template in PAGES if name in ("pair", "lora") else PAGES[:1]:
                rendered(one, template, page, **more)
            tried += 1
    for told in variants.values():
        for one in [told, *neighbours(told)]:
            for figure in FIGURES:
                for said in ("title", "alt") if there(one, figure) else ():
                    page.line("figures.j2", f"{figure}_{said}", **vars(one))
    missed = {place: values for place, values in watching.items() if values != {True, False}}
    assert tried > 300 and not missed, missed


FIGURES = ("sentence", "sentences", "swap", "layers", "leaderboard", "trust", "heads")

# ---- plain English


def sentences(page: str) -> Iterator[str]:
    """The sentences of a page: no tables, headings, code, links or pictures; what is quoted counts as one word."""
    text = re.sub(r"\A---\n.*?\n---\n|```.*?```", "", page, flags=re.DOTALL)
    text = re.sub(r"!\[.*?\]\(.*?\)", "", text)
    lines = [line.strip("*- ") for line in text.splitlines() if not re.match(r"\||#", line)]
    joined = re.sub(r"“[^”]*”", "“”", "\n".join(lines))
    for block in re.split(r"\n\s*\n|(?<=[.?!:])\s+", joined):
        if block.strip():
            yield " ".join(block.split())


@pytest.mark.parametrize("name", VARIANTS)
def test_sentences_are_short_and_hold_few_numbers(variants, name):
    page, _ = rendered(variants[name], "index.md.j2")
    for sentence in sentences(page):
        assert len(sentence.split()) <= WORDS, sentence
        assert len(re.findall(r"(?<![\w-])[−+]?\d[\d,.]*", sentence)) <= NUMBERS, sentence


DIALECT = r"\b(shaken|shakes|drawn anew|taken away|for want of|turned round|put to|whoever|told apart)\b"


def test_the_page_speaks_the_fields_language():
    for path, text in templates():
        assert not re.search(DIALECT, text), f"{path.name}: {re.search(DIALECT, text)[0]}"


def test_undefined_is_strict():
    assert Page().environment.undefined is StrictUndefined
