"""`python -m recipes.token_substitution`: make the adapted twin, from the packages to the checkpoint.

`... trials` compares beginnings.
"""

import sys

import typer

from recipes.token_substitution import pipeline
from xai_utils.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def make(context: typer.Context) -> None:
    """Corpus, tokenizer, training, evaluation, checkpoint; goes on where it stopped. About 2.5 hours on two cores;
    on a GPU minutes, for seventeen times the tokens."""
    if context.invoked_subcommand is None:
        pipeline.make()


@app.command()
def trials() -> None:
    """Short trainings from different beginnings, about seven minutes each on one core, and their table,
    written after each. The whole recipe for two cores comes last: hours on one core, minutes on a GPU."""
    from recipes.token_substitution import trials as beginnings

    beginnings.run()


def main() -> None:
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
