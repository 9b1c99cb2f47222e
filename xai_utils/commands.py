"""Commands on one text: explain it, compare two models on it, list the methods. Their results go to a terminal, as
JSON, or into a picture."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xai_utils.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from xai_utils.attribution.methods import Method
    from xai_utils.attribution.result import Attribution
    from xai_utils.evaluation.comparison import Comparison

MODEL, ADAPTER = "smollm2-135m-instruct", "models/smollm2-135m-ru-ts"

Text = Annotated[str, typer.Argument(help="the text that the model goes on with", show_default=False)]
Model = Annotated[str, typer.Option("--model", help="built-in name, Hub id, folder or GGUF file")]
Adapter = Annotated[str | None, typer.Option("--adapter", help="PEFT folder on top of the model")]
Answer = Annotated[str | None, typer.Option("--answer", help="what to explain, with its leading space")]
Contrast = Annotated[str | None, typer.Option("--contrast", help="what to compare the answer with")]
Target = Annotated[str, typer.Option("--target", help="logprob, logit, contrast or sum_logits")]
Name = Annotated[str | None, typer.Option("--method", help="see the command `methods`")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="key=value", help="a setting of the method")]
Chat = Annotated[bool, typer.Option("--chat", help="put the text into the chat template")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps")]
Precision = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or float64")]
Json = Annotated[bool, typer.Option("--json", help="print the numbers as JSON")]
Picture = Annotated[Path | None, typer.Option("--png", help="write a picture to this file")]


def explain(
    text: Text,
    answer: Answer = None,
    model: Model = MODEL,
    adapter: Adapter = None,
    contrast: Contrast = None,
    target: Target = "logprob",
    method: Name = None,
    settings: Settings = None,
    chat: Chat = False,
    device: Device = "auto",
    dtype: Precision = "float32",
    as_json: Json = False,
    png: Picture = None,
) -> None:
    """Explain one answer of a model, word by word.

    Without --answer the model's own next token is explained.

    \b
    Examples:
      python -m xai_utils explain "The capital of France is" --answer " Paris"
      python -m xai_utils explain "Чтобы открыть файл, выберите команду" --adapter models/smollm2-135m-ru-ts
      python -m xai_utils explain "2 + 2 =" --method integrated_gradients --set baseline=mean --json
    """
    from xai_utils import api

    asked = {"contrast": contrast, "target": target, "chat": chat} | _method(method, settings)
    loaded = api.load(model, adapter, device=device, dtype=dtype)
    _show(api.explain(text, loaded, answer, **asked), as_json, png)


def compare(
    text: Text,
    answer: Answer = None,
    model: Model = MODEL,
    adapter: Annotated[str | None, typer.Option("--adapter", help="PEFT folder that makes the other model")] = ADAPTER,
    other: Annotated[str | None, typer.Option("--other", help="the other model, instead of an adapter")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="word scores alone, without the parts that differ")] = False,
    contrast: Contrast = None,
    target: Target = "logprob",
    method: Name = None,
    settings: Settings = None,
    chat: Chat = False,
    device: Device = "auto",
    dtype: Precision = "float32",
    as_json: Json = False,
    png: Picture = None,
) -> None:
    """Explain one answer under two models, and what differs.

    The other model is the first with an adapter, or one of its own.

    \b
    Examples:
      python -m xai_utils compare "Чтобы открыть файл, выберите команду" --answer " Файл"
      python -m xai_utils compare "To open a file, choose" --answer " File" --adapter my-lora/
      python -m xai_utils compare "The sky is" --answer " blue" --model gpt2 --other distilgpt2 --png sky.png
    """
    from xai_utils import api

    asked = {"contrast": contrast, "target": target, "chat": chat} | _method(method, settings)
    base = api.load(model, device=device, dtype=dtype)
    twin = api.load(other or model, None if other else adapter, device=device, dtype=dtype)
    _show(api.compare(text, base, twin, answer, parts=not quick, **asked), as_json, png)


def methods() -> None:
    """List the methods, their cost and their settings."""
    from xai_utils.attribution.methods import DEFAULT_METHOD, METHODS

    for name, method in METHODS.items():
        print(f"{name}{' (default)' if name == DEFAULT_METHOD else ''}: {method.description}")
        print(f"    cost: {method.cost}")
        if own := _defaults(method):
            print(f"    settings: {', '.join(f'{key}={_written(value)}' for key, value in own.items())}")


def doctor() -> None:
    """Say what is there of what the kit needs, and what to do."""
    from xai_utils.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        print(finding, flush=True)
    if any(finding.state == "fix" for finding in findings):
        raise typer.Exit(1)


def _method(name: str | None, settings: list[str] | None) -> dict[str, Any]:
    """The method with its settings, typed as its own defaults are."""
    from xai_utils.attribution.methods import DEFAULT_METHOD, method_named

    name = name or DEFAULT_METHOD
    known, given = _defaults(method_named(name)), dict[str, Any]()
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value; write for example --set {setting}=1")
        if key not in known:
            hint = nearest(key, known) if known else "it has none"
            raise UserError(f"--set {key}: {name} has no such setting; {hint}")
        given[key] = _typed(key, text, known[key])
    return {"method": name} | given


def _defaults(method: Method) -> dict[str, Any]:
    parameters = inspect.signature(method.function).parameters
    return {name: method.fixed.get(name, parameters[name].default) for name in method.settings}


def _typed(name: str, text: str, like: Any) -> Any:
    from xai_utils.study.run import typed

    return tuple(text.split(",")) if isinstance(like, tuple) else typed(name, text, repr(like))


def _written(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _show(found: Attribution | Comparison, as_json: bool, png: Path | None) -> None:
    from rich.console import Console

    from xai_utils.files import write_whole
    from xai_utils.plots.terminal import coloured, plain

    if png:
        write_whole(png, lambda file: file.write_bytes(found.png()))
    console = Console()
    if as_json:
        print(json.dumps(_numbers(found), ensure_ascii=False, indent=1))
    elif console.is_terminal:
        console.print(coloured(found))
    else:
        print(plain(found))


def _numbers(found: Attribution | Comparison) -> dict[str, Any]:
    """A result as JSON: an empty cell is null."""
    import pandas as pd

    from xai_utils.attribution.result import Attribution
    from xai_utils.attribution.tables import certificate_row

    if isinstance(found, Attribution):
        proof = pd.DataFrame([certificate_row(found.certificate)] if found.certificate else [])
        own = {"text": found.case.text, "words": _records(found.words), "tokens": _records(found.tokens)}
        certificate = next(iter(_records(proof)), None)
        card = None if found.trust is None else found.trust.row()
        return found.keys() | own | {"certificate": certificate, "verdicts": found.verdicts, "trust": card}
    models = [_numbers(found.base), _numbers(found.other)]
    return {"words": _records(found.words), "parts": _records(found.parts), "models": models}


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records", double_precision=12))
