"""The `lepton` group: commands are entry points, loaded when asked for; their one-line help stands here.

A group below it may be open to other packages in the same way (`lepton doctor`): an `EntryGroup` of another entry-point group.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import click

from leptonstore.cli.completion import offer_names
from leptonstore.cli.runtime import ReaderGone
from leptonstore.errors import MissingExtra
from leptonstore.version import __version__

# One line each, so that `lepton --help` need not import a command (torch takes seconds). A test compares them.
SUMMARIES = {
    "init": "Make a new store.",
    "import": "Put data into the store as a new version of a dataset.",
    "collect": "Fetch what is new at a place, of a list of URLs, or of a query.",
    "append": "Add rows to a dataset.",
    "upsert": "Add rows, or replace those with the same keys.",
    "update": "Set columns of rows that exist, by their keys.",
    "delete": "Take rows out of a dataset.",
    "column": "Add, drop, rename, rewrite or cast columns.",
    "rules": "Show, add or remove the validation rules of a dataset.",
    "ls": "List datasets, models and checkpoints.",
    "log": "Show the versions of a dataset, newest first.",
    "show": "Show a version: message, author, schema, and what it changed.",
    "lineage": "Show where a model, checkpoint or version comes from.",
    "diff": "Show the rows that differ between two versions.",
    "branch": "List branches, make one, or remove it.",
    "tag": "List tags, name a version with one, or take it away.",
    "merge": "Bring what happened on one branch into another.",
    "revert": "Undo what a version changed, as a new version.",
    "restore": "Make an old version the newest again.",
    "analyse": "Describe the columns of a version, and how they differ from another one.",
    "stats": "Show the size, columns and deduplication of a version.",
    "get": "Print one row, or write one value to a file.",
    "export": "Write a version out in the formats that other tools read.",
    "head": "Print the first rows of a dataset.",
    "sql": "Query datasets with SQL.",
    "process": "Run pipelines: operations on rows that make a new version.",
    "clean": "Find rows that spoil training; drop, tag or fix them.",
    "report": "Write one HTML file that shows a version.",
    "browse": "Look through the rows of a dataset in the terminal.",
    "checkout": "Write a version out: another name of export.",
    "key": "Show, add, remove or rotate the keys of an encrypted store.",
    "forget": "Forget old versions, so that gc can free what only they need.",
    "erase": "Erase rows from every version and every byte of the store.",
    "gc": "Remove what no version, reader or writer needs.",
    "check": "Find what is damaged or missing.",
    "repair": "Mend damaged and missing packs, and say what is lost.",
    "du": "Show what each dataset and version takes, and what they share.",
    "quota": "Show or set the store's quota.",
    "tier": "Keep packs in several places, and move them between these.",
    "cache": "Show, empty or fill this host's hot cache.",
    "push": "Bring versions to another store: only what it lacks travels.",
    "pull": "Get versions from another store: only what is not here travels.",
    "clone": "Make a new store with what another one has.",
    "remote": "Remember other stores by name.",
    "jobs": "Maintenance that a daemon does: see, start, stop, schedule.",
    "token": "Who may use a store through its daemons: make, list and revoke tokens.",
    "serve": "Serve a store to other machines: data, HTTP, a dashboard.",
    "references": "Show and allow where values stand that were not copied.",
    "materialize": "Copy values that a dataset refers to into the store.",
    "upgrade": "Upgrade a store that an older version made.",
    "completion": "Print what makes a shell complete commands and names.",
    "doctor": "Show what this machine has: devices, codecs, versions.",
    "receipt": "Check what a loader handed out, and have any batch again.",
    "train": "Train a model on a dataset.",
    "evaluate": "Measure a model on a dataset.",
    "predict": "Label new images, or every row of a dataset.",
    "checkpoint": "List, compare, export, import and remove checkpoints.",
    "reproduce": "Train a model again, and compare bit for bit.",
    "deploy": "Make a model bundle from a checkpoint, and serve it.",
    "demo": "Run the whole chain, from raw files to predictions.",
}
_EXTRA_OF = {"trainers": "train", "loaders": "train", "leptonstore": "process"}


class EntryGroup(click.Group):
    """A group whose commands are the entry points of `entries`. `summaries`: their lines in its help, in this order."""

    entries = "lepton.commands"
    summaries: Mapping[str, str] = SUMMARIES

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = {entry.name for entry in entry_points(group=self.entries)}
        return [name for name in self.summaries if name in names] + sorted(names - set(self.summaries))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        for entry in entry_points(group=self.entries, name=cmd_name):
            try:
                command: click.Command = entry.load()
            except ModuleNotFoundError as error:
                module = (error.name or "").split(".")[0]
                if module in ("leptonstore", "loaders", "trainers"):
                    raise
                raise MissingExtra(f"`lepton {cmd_name}`", _EXTRA_OF[entry.module.split(".")[0]], module) from None
            offer_names(command)
            return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.summaries.get(name, "")) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class _Lepton(EntryGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error


@click.group(
    cls=_Lepton,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="A version is NAME (branch main), NAME@BRANCH, NAME@TAG, NAME@DIGITS of its digest, NAME@2026-11-01 or "
    "NAME@BRANCH@2026-11-01T12:00 (what the branch was then), each with ~2 (versions back) or ^2 (the other parent of a merge). "
    "The store is --store, else $LEPTON_STORE, else ./.lepton. Exit codes: 0 done, 1 error, 2 usage, "
    "3 not found, 4 damaged, 5 conflict, 6 disk full, 7 newer format, 8 missing extra, 9 not permitted, 10 wrong passphrase or key file, "
    "11 a tier does not answer, 12 another rank of a training has ended, 13 a cluster cannot be reached or went away, 130 interrupted.",
)
@click.version_option(__version__, prog_name="lepton")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def lepton(debug: bool) -> None:
    """Keep training data once, version it, and train from it.

    \b
    Example:
      lepton init
      lepton import mnist/ digits
      lepton train digits --epochs 5
    """
