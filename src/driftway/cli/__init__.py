"""The command line: `driftway transport fit | sample | evaluate`, `finetune stop | run`, `adapt fit | predict` and `demo`.

A command is imported when it is called: the help is there at once, without PyTorch.
"""

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "transport": "Value-driven transport: samples of one law moved to another.",
    "finetune": "When to stop fine-tuning, computed before it begins and without a validation set.",
    "adapt": "Regression on a target with few labels, from sources with many.",
    "demo": "All of it on data that is there, with reports.",
}  # each is a file of this folder, with its `app`


class Commands(TyperGroup):
    """The commands by name; only the one that is called is imported."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, typer.main.get_command(import_module(f"driftway.cli.{name}").app), rest


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Move samples, a pretrained model or a regressor to where they are needed."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 diverged, 2 unusable input, 3 a file or disk failed, 130 stopped by the user."""
    try:
        app()
    except ArithmeticError as error:
        _fail(error, "Diverged", 1)
    except ValueError as error:
        _fail(error, "InputError", 2)
    except OSError as error:
        if error.errno is None:
            raise  # no error of the system
        from driftway.cli.terminal import fail
        from driftway.store import described

        sys.exit(fail(described(error), 3))


def _fail(error: Exception, expected: str, code: int) -> None:
    """Print an error of ours on one line, and exit; any other goes on."""
    from driftway import checks  # late: with PyTorch
    from driftway.cli.terminal import fail

    if not isinstance(error, getattr(checks, expected)):
        raise error
    sys.exit(fail(str(error), code))
