"""The command line: `driftway transport fit | sample | evaluate`, `finetune stop | run`, `adapt fit | predict` and `demo`."""

import sys

import typer

from driftway.checks import Diverged, InputError
from driftway.cli import adapt, demo, finetune, transport
from driftway.cli.terminal import fail

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Move samples to where they are needed.")
app.add_typer(transport.app, name="transport")
app.add_typer(finetune.app, name="finetune")
app.add_typer(adapt.app, name="adapt")
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 training diverged, 2 unusable input, 130 stopped by the user."""
    try:
        app()
    except InputError as error:
        sys.exit(fail(str(error), 2))
    except Diverged as error:
        sys.exit(fail(str(error), 1))
