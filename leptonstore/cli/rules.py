"""lepton rules ls | add | rm"""

from __future__ import annotations

from typing import Any

import click

from leptonstore.cli.edits import edit_options, run_edit, value_of
from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset import Dataset, columns
from leptonstore.dataset.rules import KINDS, Rule, rules_of
from leptonstore.errors import BadInput


@click.group("rules")
def command() -> None:
    """Show, add or remove the validation rules of a dataset: what the values of a column must be.

    They stand in the schema; rows that break one are refused by every later edit. All take --store and --json.

    \b
    Example:
      lepton rules add birds score --min 0 --max 1
      lepton rules ls birds
    """


@command.command("ls")
@click.argument("name")
@store_option
@json_option
def ls(name: str, store: str | None, as_json: bool) -> None:
    """Show the rules of NAME[@REF].

    \b
    Example:
      lepton rules ls birds --json
    """
    with open_store(store) as opened:
        head = Dataset.open(opened, name)
        found = [(field.name, rule) for field in head.schema for rule in rules_of(field)]
        value = {"dataset": head.name, "rules": [{"column": column, **rule.to_json()} for column, rule in found]}
        text = "\n".join(f"{column}: {rule}" for column, rule in found) or f"{head.name}@{head.ref} has no rules"
        emit(value, as_json, text)


@command.command("add")
@click.argument("name")
@click.argument("column")
@click.option("--not-null", is_flag=True, help="No value is null.")
@click.option("--min", "least", metavar="VALUE", help="No value is less.")
@click.option("--max", "most", metavar="VALUE", help="No value is greater.")
@click.option("--one-of", multiple=True, metavar="VALUE", help="An allowed value; may be repeated.")
@click.option("--pattern", metavar="REGEX", help="The whole text fits this pattern (RE2).")
@click.option("--unique", is_flag=True, help="No value stands in two rows. Each commit then reads the column.")
@edit_options
def add(
    name: str,
    column: str,
    not_null: bool,
    least: str | None,
    most: str | None,
    one_of: tuple[str, ...],
    pattern: str | None,
    unique: bool,
    **options: Any,
) -> None:
    """Add rules for COLUMN of NAME[@BRANCH]; the rows that are there must keep them. One of a kind replaces the older one.

    Exit codes: 0 done, 2 rows that break a rule, or one that does not fit the column, 3 no such name.

    \b
    Example:
      lepton rules add birds species --one-of finch --one-of wren --not-null
    """
    rules = [Rule("not_null")] if not_null else []
    if least is not None or most is not None:
        low, high = (None if end is None else value_of(end) for end in (least, most))
        rules.append(Rule("range", low, high))
    if one_of:
        rules.append(Rule("one_of", values=tuple(value_of(one) for one in one_of)))
    if pattern is not None:
        rules.append(Rule("pattern", pattern=pattern))
    if unique:
        rules.append(Rule("unique"))
    if not rules:
        raise BadInput("say which rule: --not-null, --min, --max, --one-of, --pattern or --unique")
    run_edit(name, lambda head, by, report: columns.change_rules(head, column, rules, **by), **options)


@command.command("rm")
@click.argument("name")
@click.argument("column")
@click.argument("kinds", nargs=-1, required=True, type=click.Choice(KINDS))
@edit_options
def rm(name: str, column: str, kinds: tuple[str, ...], **options: Any) -> None:
    """Remove rules of these KINDS from COLUMN of NAME[@BRANCH].

    \b
    Example:
      lepton rules rm birds score range
    """
    run_edit(name, lambda head, by, report: columns.change_rules(head, column, (), kinds, **by), **options)
