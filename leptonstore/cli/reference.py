"""docs/cli.md, written from the commands themselves: `python -m leptonstore.cli.reference > docs/cli.md`. A test compares the two."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from leptonstore.cli.group import SUMMARIES, lepton
from leptonstore.cli.runtime import EXIT_CODES

_HEAD = """# The command line

<!-- no block of this page is run: a list of commands -->

This page is written from the code (`python -m leptonstore.cli.reference > docs/cli.md`). `lepton COMMAND --help` says the same.

Every command takes `--help`; what prints a result takes `--json`, and then its last line is one JSON object. Progress goes to stderr, and
only to a terminal. `lepton --debug COMMAND …` shows the traceback of an error. Completion: `lepton completion bash|zsh|fish`.

**Which store:** `--store PATH|URL`, else `$LEPTON_STORE`, else `./.lepton`.

**Which version:** wherever NAME stands for a version it may be `NAME` (its branch main), `NAME@BRANCH`, `NAME@TAG` or `NAME@COMMIT` (its
first digits are enough), each with `~2` (two versions before) or `^2` (the second parent of a merge), and `NAME@2026-11-01` or
`NAME@2026-11-01T12:00` (what main was then).

**Exit codes:** 0 done, 1 error, {codes}, 130 interrupted.
"""
_CODES = {
    2: "usage",
    3: "not found",
    4: "damaged",
    5: "conflict",
    6: "disk or quota full",
    7: "newer format",
    8: "missing extra",
    9: "not permitted",
    10: "wrong passphrase or key file",
    11: "a tier does not answer",
}


def reference() -> str:
    """All of docs/cli.md."""
    codes = sorted({code for _, code in EXIT_CODES if code in _CODES})
    head = _HEAD.replace("{codes}", ", ".join(f"{code} {_CODES[code]}" for code in codes))
    context = click.Context(lepton, info_name="lepton")
    names = lepton.list_commands(context)
    parts = [head, "\n".join(f"- [`lepton {name}`](#lepton-{name}): {SUMMARIES.get(name, '')}" for name in names)]
    for name in names:
        command = lepton.get_command(context, name)
        assert command is not None
        parts += _of_command(command, f"lepton {name}", context, "##")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _of_command(command: click.Command, path: str, parent: click.Context, heading: str) -> Iterator[str]:
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    yield f"{heading} {path}"
    usage = " ".join([path, *(piece for piece in command.collect_usage_pieces(context) if piece)])
    yield f"```bash\n{usage}\n```"
    yield from _prose(inspect.cleandoc(command.help or ""))
    options = [
        record
        for option in command.get_params(context)
        if isinstance(option, click.Option) and (record := option.get_help_record(context))
    ]
    rows = [(_cell(names), _cell(text)) for names, text in options if "--help" not in names]
    if rows:
        table = ["| option | |", "| --- | --- |", *(f"| `{names}` | {text} |" for names, text in rows)]
        yield "\n".join(table)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _of_command(below, f"{path} {name}", context, "###")


def _prose(text: str) -> Iterator[str]:
    """Paragraphs of a docstring; what click leaves as it is (after a \\b) becomes a block."""
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("\b"):
            lines = paragraph.removeprefix("\b").strip("\n").split("\n")
            title = lines[0] if lines[0].endswith(":") and not lines[0].startswith(" ") else ""
            body = "\n".join(inspect.cleandoc("\n".join(["", *lines[bool(title) :]])).split("\n"))
            language = "bash" if title.startswith("Example") else "text"
            yield f"{title}\n\n```{language}\n{body}\n```".lstrip("\n")
        else:
            yield " ".join(paragraph.split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    click.echo(reference(), nl=False)
