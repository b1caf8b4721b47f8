"""The command `draft`: one error boundary, and commands that are imported when they are called."""

from __future__ import annotations

import faulthandler
import importlib
import io
import os
import sys
from contextlib import nullcontext, suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from draft.errors import ConfigError, DraftError, PluginError, did_you_mean, system_error
from draft.requirements import own_requirements, require
from draft_cli.interrupts import interrupts

COMMANDS = {
    "run": ("draft_cli.run:run_command", "Run a pipeline file."),
    "check": ("draft_cli.run:check_command", "Check a pipeline file without running it."),
    "mix": ("draft_cli.mix:mix", "Mix adapters, each with a weight, into one."),
    "merge": ("draft_cli.merge:merge", "Merge adapters into a model's weights."),
    "extract": ("draft_cli.extract:extract", "Extract an adapter from two models."),
    "inspect": ("draft_cli.inspect:inspect", "Show what an adapter file holds: family, ranks, norms, metadata."),
    "diff": ("draft_cli.diff:diff", "Compare two adapters module by module."),
    "convert": ("draft_cli.convert:convert", "Write an adapter in another format or dtype."),
    "resize": ("draft_cli.resize:resize", "Cut an adapter to a smaller rank, with a known error."),
    "verify": ("draft_cli.verify:verify", "Check that an adapter loads everywhere, at the right strength."),
    "strip": ("draft_cli.strip:strip", "Draw what an adapter does over its scale, or two over both."),
    "reproduce": ("draft_cli.reproduce:reproduce", "Write the pipeline that made an adapter, out of its metadata."),
    "rewards": ("draft_cli.rewards:app", "List, write, check, score with and try rewards."),
    "models": ("draft_cli.models:models_command", "Show the models that pipelines may name."),
    "cache": ("draft_cli.cache:app", "Show or clear what Draft keeps on disk to save time."),
    "plugins": ("draft_cli.plugins:plugins_command", "Show the installed plugins and their state."),
    "schema": ("draft_cli.run:schema_command", "Print the JSON Schema of pipeline files."),
}
"""Command to its module and its line in `draft --help`; nothing is imported for the help."""

TRACEBACK = "--traceback"
"""An option of every command, wherever it stands in the line."""


class Interrupted(Exception):
    """Carries Ctrl-C or SIGTERM past Typer, which would swallow the message about resuming.

    Args:
        stop: The interrupt.
    """

    def __init__(self, stop: KeyboardInterrupt) -> None:
        super().__init__()
        self.stop = stop


class LazyGroup(TyperGroup):
    """A group that knows its commands' names and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one command."""
        if cmd_name not in COMMANDS:
            hint = did_you_mean(cmd_name, list(COMMANDS), otherwise=f"the commands are {', '.join(COMMANDS)}")
            raise ConfigError(f"unknown command {cmd_name!r}", where="command line", hint=hint)
        require(own_requirements(), of="Draft")
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if not isinstance(target, typer.Typer):
            wrapped = _typer()
            wrapped.command(cmd_name)(target)
            target = wrapped
        command = get_command(target)
        command.name = cmd_name
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        interrupts.begun = True
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Interrupted(stop) from stop
        except SystemExit as stop:
            # Draft never raises it in here; a run that a plugin ends must not look like one that is done.
            raise PluginError(
                f"the code of a plugin ended the command (SystemExit: {stop.code})",
                hint="--traceback shows where",
            ) from stop

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands' one-liners from `COMMANDS`, importing none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _typer(**options: Any) -> typer.Typer:
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, **options)


app = _typer(cls=LazyGroup, no_args_is_help=True)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"draft {version('draft-diffusion')}")
        raise typer.Exit


@app.callback()
def draft(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error comes from; goes anywhere in a line.")
    ] = False,
) -> None:
    """Teach a diffusion model what you like: rewards backpropagated through sampling into LoRA adapters."""


def main() -> None:
    """Run the command line; the one place where errors become text and exit codes.

    A `DraftError` is printed without a traceback, exit code 2; Ctrl-C is 130, SIGTERM 143; anything else is a bug
    and shows its traceback.
    """
    from draft_cli.console import keep_results_apart, print_error, print_line, print_notes, quiet_libraries

    quiet_libraries()
    _enable_faulthandler()
    words = [word for word in sys.argv[1:] if word != TRACEBACK]
    traceback = len(words) < len(sys.argv) - 1
    try:
        with keep_results_apart() if "--json" in words else nullcontext():
            code = get_command(app)(args=words, standalone_mode=False, prog_name="draft")
        sys.stdout.flush()
    except DraftError as error:
        print_error(error, traceback=traceback)
        code = 2
    except Interrupted as error:
        from draft.pipeline.interrupt import Terminated

        terminated = isinstance(error.stop, Terminated)
        print_line("stopped" if terminated else "interrupted")
        print_notes(error.stop)
        code = 143 if terminated else 130
    except (KeyboardInterrupt, typer.Abort) as error:  # outside of a command
        print_line("interrupted")
        print_notes(error)
        code = 130
    except BrokenPipeError:
        # The reader has gone (`draft rewards | head`); keep the interpreter from complaining when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        show = getattr(error, "show", None)  # Typer's own usage errors, which know how to print themselves
        refused = system_error(error)
        if show is not None:
            show()
            code = getattr(error, "exit_code", 2)
        elif interrupts.raised:  # libraries turn an interrupt of their imports into errors of their own
            print_line("interrupted")
            print_notes(error)
            code = 130
        elif refused is not None:
            refused.__cause__ = error
            print_error(refused, traceback=traceback)
            code = 2
        else:
            raise
    sys.exit(code if isinstance(code, int) else 0)


def _enable_faulthandler() -> None:
    """Let a crash of this process leave its Python stack on standard error."""
    if not faulthandler.is_enabled():
        # No standard error, or one that is no file, has no room for a stack.
        with suppress(RuntimeError, AttributeError, io.UnsupportedOperation):
            faulthandler.enable()


if __name__ == "__main__":
    main()
