"""`python -m recipes.lora`: make the LoRA twin, from the packages to the checkpoint. `... trials`: compare settings;
`... ship FOLDER`: publish a training that was done elsewhere."""

import sys
from pathlib import Path

import typer

from recipes.lora import pipeline
from xai_utils.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def make(context: typer.Context) -> None:
    """Corpus, training, evaluation, checkpoint; goes on where it stopped. At most an hour on two cores; on a GPU
    minutes, for thirty times the tokens."""
    if context.invoked_subcommand is None:
        pipeline.make()


@app.command()
def trials(seconds: float = 3600.0, steps: int | None = None) -> None:
    """The recipe for a GPU beside others, as many as start within `seconds`."""
    from recipes.lora import trials as settings

    settings.run(seconds, steps)


@app.command()
def ship(folder: Path) -> None:
    """Measure the finished training in FOLDER and make it the shipped adapter."""
    pipeline.ship(folder)


def main() -> None:
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
