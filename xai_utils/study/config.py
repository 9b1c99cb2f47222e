"""A study file: one YAML file that names models, texts, methods and their settings, read and checked as a whole.

Whatever is wrong with it becomes one `UserError` whose single line names the file and the key. Its paths start from
the folder that it lies in.
"""

import re
import unicodedata
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, Strict, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from xai_utils.attribution.methods import method_named
from xai_utils.errors import UserError, nearest, shown
from xai_utils.fields import Count, FileName, Flag, Positive, Text, kind_of, place_of, said
from xai_utils.files import ROOT, locate
from xai_utils.models.entry import ModelEntry
from xai_utils.text.entry import Reading, TargetKind, TextEntry

PUBLISHED = tuple(ROOT / "studies" / f"{name}.yaml" for name in ("default", "lora"))  # the report is about the first
UNFOLDED = 10_000  # values that aliases may add: a few hundred bytes can stand for billions

Notebook = Literal["00", "01", "02", "03", "04", "05", "06", "07"]
Baseline = Literal["mean", "zero", "eos", "space", "sampled"]
Absence = Literal["dropped", "hidden", "mean", "sampled", "eos", "space", "zero"]


class Study(Reading):
    """A whole study, every key optional but `models` and `texts`; `name` is the stem of its file."""

    name: FileName
    published: bool = False  # set by load_study for those of PUBLISHED, whose results are committed
    models: Annotated[tuple[ModelEntry, ...], Field(min_length=1)]
    texts: Annotated[tuple[TextEntry, ...], Field(min_length=1)]
    target: TargetKind = "logprob"
    absences: Annotated[tuple[Absence, ...], Field(min_length=1)] = ("mean", "dropped", "eos", "zero")  # the panel
    baseline: Baseline = "zero"  # where a path starts
    baselines: Annotated[tuple[Baseline, ...], Field(min_length=1)] = ("zero", "mean")  # a difference keeps its sign
    keep_sink: Flag = True
    tolerance: Positive = 0.01  # of |F(x) - F(baseline)|
    budget: Count = 1024  # gradients, or versions of the text, a case and method; no less than one round
    methods: Annotated[tuple[Text, ...], Field(min_length=1)] = ("integrated_gradients", "ablation", "sensitivity")
    continuation: Count = 4  # tokens of the model's own continuation that are explained, on the shortest text
    steps: Count = 50  # nodes of the original's fixed-step integrated gradients
    draws: Annotated[int, Strict(), Field(ge=3)] = 30  # of noise a token in sensitivity; fewer have no error
    sigma: Positive = 0.1  # standard deviation of that noise, in embedding units
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**32)] = 0
    claims: Literal["original"] | None = None  # whose claims the report decides
    chosen: Text | None = None  # how texts and answers were chosen, in a sentence or two for the report
    notebooks: Annotated[tuple[Notebook, ...], Field(min_length=1)] = ("01", "02", "03", "04", "05")

    @property
    def leads(self) -> bool:
        """Whether this is the published study that the report and the README are about."""
        return self.published and self.name == PUBLISHED[0].stem

    @property
    def absence(self) -> Absence:
        """What methods of one absence take: the panel's first."""
        return self.absences[0]

    @model_validator(mode="after")
    def _entries_fit(self) -> Self:
        _distinct("models", "label", [model.label for model in self.models])
        _distinct("texts", "id", [text.id for text in self.texts])
        _distinct("methods", "name", list(self.methods))
        _distinct("absences", "name", list(self.absences))
        for index, text in enumerate(self.texts):
            if (text.target or self.target) == "contrast" and text.contrast is None:
                raise ValueError(
                    f"texts[{index}].contrast: missing; the target 'contrast' needs it in text {text.id!r}"
                )
        return self


def setting(name: str, value: object) -> Any:
    """A method's setting as a study would read it. Raises UserError where a study would refuse it."""
    fields = Study.model_fields
    if name != "absence" and name not in fields:
        return value
    kind: Any = Absence if name == "absence" else Annotated[fields[name].annotation, fields[name]]
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{name}: {said(error.errors()[0]).removeprefix(': ')}") from None


def _distinct(key: str, field: str, names: list[str]) -> None:
    """Names become file names, and some file systems take A for a, or one way to write a letter for another."""
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), index)
        if first != index:
            raise ValueError(f"{key}[{index}]: has the {field} {name!r} of {key}[{first}]; give each its own")


class _Loader(yaml.SafeLoader):
    """Safe YAML with the 1.2 reading of scalars (`no` is text, `1e-3` a number); a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {shown(key_node.value)} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def get_single_node(self) -> yaml.Node | None:
        """The document, refused where its aliases unfold to far more than is written."""
        document = super().get_single_node()
        sizes: dict[int, int] = {}
        if document is not None and _unfolded(document, sizes) - len(sizes) > UNFOLDED:
            raise ValueError(f"its aliases unfold to more than {UNFOLDED} values; write out what they stand for")
        return document


def _unfolded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node is with its aliases written out; `sizes` remembers those of each node."""
    if id(node) not in sizes:
        sizes[id(node)] = 1  # of a node inside itself, which its reader refuses
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_unfolded(part, sizes) for part in parts)
    return sizes[id(node)]


_Loader.yaml_implicit_resolvers = {}
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def load_study(path: str | Path) -> Study:
    """Read and check a study file. Raises UserError, one line, for whatever is wrong with it."""
    file = locate(path)
    if not file.exists():
        known = [f"studies/{other.name}" for other in sorted((ROOT / "studies").glob("*.yaml"))]
        raise UserError(f"{path}: no such study file; {nearest(str(path), known) if known else 'write one'}")
    content = _read_yaml(file, str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected the keys models and texts at the top, got {kind_of(content)}")
    published = file.resolve() in PUBLISHED
    if file.stem in [known.stem for known in PUBLISHED] and not published:
        raise UserError(f"{path}: the name {file.stem!r} is a published study's; give this file another name")
    for key in {"name", "published"} & content.keys():
        raise UserError(f"{path}: {key}: unknown key; {nearest(key, _keys(Study))}")
    named = {"name": file.stem, "published": published, **{str(key): value for key, value in content.items()}}
    try:
        study = Study.model_validate(named, context={"home": file.resolve().parent})
    except ValidationError as error:
        # a list whose only entry is wrong is also called too short
        problems = [problem for problem in error.errors() if problem["type"] != "too_short" or not problem["input"]]
        more = f" (and {len(problems) - 1} more to mend after this)" if len(problems) > 1 else ""
        raise UserError(f"{path}: {_message(problems[0])}{more}") from None
    _check_methods(study, str(path))
    return study


def _check_methods(study: Study, path: str) -> None:
    for index, name in enumerate(study.methods):
        try:
            method_named(name)
        except UserError as error:
            raise UserError(f"{path}: methods[{index}]: {error}") from None


def _read_yaml(file: Path, name: str) -> object:
    try:
        return yaml.load(file.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); name a YAML file that you may read") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except yaml.reader.ReaderError as error:
        code = f"U+{error.character:04X}" if isinstance(error.character, int) else shown(error.character)
        raise UserError(f"{name}: holds the control character {code}; remove it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{name}: {place}not readable as YAML: {error.problem or error.context}") from None
    except ValueError as error:
        raise UserError(f"{name}: not readable as YAML: {shown(str(error), 120)}") from None
    except RecursionError:
        raise UserError(f"{name}: not readable as YAML: its lists or mappings are nested too deep") from None


def _keys(model: type[BaseModel]) -> list[str]:
    return [key for key in model.model_fields if model is not Study or key not in ("name", "published")]


def _message(problem: ErrorDetails) -> str:
    """One pydantic problem as `key path: what is wrong; what was expected`."""
    location, kind = problem["loc"], problem["type"]
    if kind == "extra_forbidden":
        owners: dict[str, type[BaseModel]] = {"models": ModelEntry, "texts": TextEntry}
        owner = owners.get(str(location[0]), Study) if len(location) > 1 else Study
        return f"{place_of(problem)}: unknown key; {nearest(str(location[-1]), _keys(owner))}"
    if kind == "missing":
        needs = "every study needs models and texts, a model label and model, a text id and text"
        return f"{place_of(problem)}: missing; {needs}"
    return said(problem)
