"""`draft rewards`: what is installed, a package for the next one, whether it keeps its contract, and what it likes."""

from __future__ import annotations

import typer

from draft_cli.rewards.check import check_command
from draft_cli.rewards.listing import list_command, show_command
from draft_cli.rewards.new import new_command
from draft_cli.rewards.score import score_command
from draft_cli.rewards.trial import try_command

app = typer.Typer(
    help="List, write, check, score with and try rewards.",
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def rewards_command(context: typer.Context) -> None:
    """List, write, check, score with and try rewards; alone, it lists them."""
    if context.invoked_subcommand is None:
        list_command(as_json=False)


app.command("list", short_help="List the installed rewards.")(list_command)
app.command("show", short_help="Show all about one reward.")(show_command)
app.command("new", short_help="Write a package for a reward of your own.")(new_command)
app.command("check", short_help="Check that a reward keeps its contract.")(check_command)
app.command("score", short_help="Score images.")(score_command)
app.command("try", short_help="See what a reward wants, before training.")(try_command)
