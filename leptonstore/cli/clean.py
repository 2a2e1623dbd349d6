"""lepton clean"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import pyarrow as pa

from leptonstore.cli.process import passes
from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.cli.table import aligned
from leptonstore.dataset import Dataset
from leptonstore.dataset.shown import one_line
from leptonstore.errors import BadInput, MissingExtra, listed

if TYPE_CHECKING:
    from leptonstore.process.checks.check import Check
    from leptonstore.process.pipeline import Result

ALL = "all"
NAMED_MAX = 4  # checks in a line of advice
LOOKED_AT = 20  # rows that tell which column of texts is meant, most likely
NO_BOUNDS = ("action", "column", "unit")  # parameters beside which a check still needs what is usual for it


@click.command("clean")
@click.argument("name")
@click.option(
    "--check",
    "checks",
    multiple=True,
    metavar="CHECK",
    help="Search for this; may be given several times; all: all that fit.",
)
@click.option("--drop", multiple=True, metavar="CHECK", help="Leave out the rows that this check finds.")
@click.option(
    "--tag", multiple=True, metavar="CHECK", help="Write the check's name into the column `findings` of its rows."
)
@click.option("--fix", multiple=True, metavar="CHECK", help="Write what the check holds to be right.")
@click.option(
    "--set", "settings", multiple=True, metavar="CHECK.NAME=VALUE", help="A parameter of a check: outliers.z_max=8"
)
@click.option(
    "--save", is_flag=True, help="Write what was found into NAME.findings, where `lepton report` finds it, and no rows."
)
@click.option(
    "--into",
    metavar="[NAME@]BRANCH",
    help="Where the new version goes: a branch of NAME, or of another dataset (default: the one that is read).",
)
@click.option(
    "--limit",
    type=click.IntRange(0, 1_000),
    default=3,
    show_default=True,
    help="So many findings of each check, the worst.",
)
@click.option(
    "--runner", type=click.Choice(("native", "ray")), default="native", show_default=True, help="Where it runs."
)
@click.option("--address", help="Of a Ray cluster (default: Ray on this machine).")
@store_option
@json_option
def command(
    name: str,
    checks: tuple[str, ...],
    drop: tuple[str, ...],
    tag: tuple[str, ...],
    fix: tuple[str, ...],
    settings: tuple[str, ...],
    save: bool,
    into: str | None,
    limit: int,
    runner: str,
    address: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Search NAME[@REF] for rows that spoil training; with --drop, --tag or --fix, write a version without or with them.

    Without an action no row is written. Without a name the checks run that fit the columns and are quick. docs/cleaning.md explains the
    checks and their parameters, and so does `lepton process show check.NAME`.

    What is dropped stays in the version that was read, and each finding stands in the dataset NAME.findings.

    Exit codes: 0 done (whatever was found), 2 no such check, or one that does not fit, 3 no such dataset, 8 an optional part is not
    installed, 13 no cluster answers, or it went away.

    \b
    Example:
      lepton clean birds
      lepton clean birds --check label_errors --limit 20 --save
      lepton clean birds --drop duplicates --drop leakage --tag outliers --into clean
    """
    from leptonstore.process.checks.defaults import fitting_checks, ordered
    from leptonstore.process.engine import Runner
    from leptonstore.process.pipeline import FINDINGS, LOOKED, Pipeline

    actions = _actions({"drop": drop, "tag": tag, "fix": fix})
    parameters = _parameters(settings)
    with open_store(store) as opened, passes() as tell:
        begin = time.perf_counter()
        ds = Dataset.open(opened, name)
        if into is not None and not actions:
            raise BadInput(
                "--into says where a new version goes: say what becomes of the rows, with --drop, --tag or --fix"
            )
        if save and actions:
            raise BadInput(
                "--save is for searches without an action: a run with --drop, --tag or --fix saves its findings anyway"
            )
        left_out: Mapping[str, str] = {}
        if (checks or actions) and ALL not in checks:
            named = list(dict.fromkeys(_plain(one) for one in (*checks, *actions)))
            _require_named(parameters, named)
            chosen: Sequence[Check] = ordered(_made(one, parameters, actions) for one in named)
        else:
            choice = fitting_checks(ds, ALL in checks, _with_actions(parameters, actions))
            chosen, left_out = choice.checks, choice.left_out
        if not chosen:
            raise BadInput(
                f"no check fits the columns of {ds.label}: {', '.join(ds.schema.names)}; name one with --check"
            )
        target = into if into is None or "@" in into else f"{ds.name}@{into}"
        pipeline = Pipeline(name, chosen, target, message=_message(actions), where="clean")
        run = Runner(runner, address)
        result = pipeline.run(opened, run, tell) if actions else pipeline.look(opened, run, tell, save=save)
        seconds = time.perf_counter() - begin
        saved = f"{ds.name}{FINDINGS}@{LOOKED}" if save else None
        body = _told(ds, chosen, result, limit, bool(actions)) | {
            "saved": saved,
            "not_searched": dict(left_out),
            "seconds": round(seconds, 3),
        }
        skipped = [] if as_json else _skipped(ds, left_out, ALL in checks)
    emit(body, as_json, lambda: _print(body, ds, bool(actions), skipped))


# -- what was asked for ----------------------------------------------------------------------------------------------


def _plain(check: str) -> str:
    return check.removeprefix("check.")


def _actions(given: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The action of each check. Raises BadInput for two of one check."""
    out: dict[str, str] = {}
    for action, checks in given.items():
        for check in map(_plain, checks):
            if out.get(check, action) != action:
                raise BadInput(f"--{out[check]} {check} and --{action} {check}: a check has one action")
            out[check] = action
    return out


def _parameters(settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """CHECK.NAME=VALUE -> by check and name; a value is JSON, or a text. Raises BadInput."""
    out: dict[str, dict[str, Any]] = {}
    for setting in settings:
        place, equals, text = setting.partition("=")
        check, dot, parameter = _plain(place).rpartition(".")
        if not (equals and dot and check and parameter):
            raise BadInput(f"--set {setting}: write CHECK.NAME=VALUE, as in --set outliers.z_max=8")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        out.setdefault(check, {})[parameter] = value
    return out


def _require_named(parameters: Mapping[str, Any], named: Sequence[str]) -> None:
    for check in parameters:
        if check not in named:
            raise BadInput(
                f"--set {check}.…: {check} is not searched for; name it with --check, --drop, --tag or --fix"
            )


def _made(check: str, parameters: Mapping[str, Mapping[str, Any]], actions: Mapping[str, str]) -> Check:
    from leptonstore.process.checks.defaults import check_named

    return check_named(check, _with_actions({check: parameters.get(check, {})}, actions)[check])


def _with_actions(parameters: Mapping[str, Mapping[str, Any]], actions: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """All parameters that checks are given. Where these are no bounds (only the column, say), the usual ones are added."""
    from leptonstore.process.checks.defaults import USUAL

    out = {check: dict(given) for check, given in parameters.items()}
    for check, action in actions.items():
        out.setdefault(check, {})["action"] = action
    return {
        check: given if set(given) - set(NO_BOUNDS) else {**USUAL.get(check, {}), **given}
        for check, given in out.items()
    }


def _message(actions: Mapping[str, str]) -> str:
    """Of the commit: "clean: drop duplicates, leakage; tag outliers"."""
    said = []
    for action in dict.fromkeys(actions.values()):
        said.append(f"{action} {', '.join(check for check, its in actions.items() if its == action)}")
    return f"clean: {'; '.join(said)}"


# -- what came of it -------------------------------------------------------------------------------------------------


def _told(ds: Dataset, checks: Sequence[Check], result: Result, limit: int, acted: bool) -> dict[str, Any]:
    from leptonstore.process.findings import counts, rows_found, worst

    found = counts(result.findings)
    made = result.dataset
    return {
        "dataset": ds.name,
        "ref": ds.ref,
        "commit": ds.commit,
        "rows": len(ds),
        "rows_found": len(rows_found(result.findings)),
        "checks": [
            {
                "check": check.tag,
                "action": check.action,
                "found": found.get(check.tag, 0),
                "worst": worst(result.findings, check.tag, limit).to_pylist(),
            }
            for check in checks
        ],
        "result": {
            "dataset": made.name,
            "branch": made.ref,
            "commit": made.commit,
            "rows": len(made),
            "written": result.written,
            "dropped": result.dropped(),
        }
        if acted
        else None,
    }


def _skipped(ds: Dataset, left_out: Mapping[str, str], everything: bool) -> list[str]:
    """Lines about checks that did not run though they were wanted: those that only lack the choice of a column, and what to type;
    with `everything` the others too. Empty where there are none."""
    from leptonstore.process.checks.defaults import QUICK

    undecided, texts = _undecided(ds, left_out)
    lines = []
    if undecided:
        likely = _longest(ds, texts)
        wanted = [check for check in undecided if everything or check in QUICK] or undecided
        chosen = " ".join(f"--set {check}.column={likely}" for check in wanted)
        lines += [
            f"not searched: {', '.join(undecided)}",
            f"  why            several columns are texts ({listed(texts)}); say which one is looked at, such as {likely}",
            f"  from now on    lepton column cast {ds.label} {likely} --semantic text",
            f"  this time      the same with {chosen}",
        ]
    if everything:
        whys: dict[str, list[str]] = {}
        for check, why in left_out.items():
            if check not in undecided:
                whys.setdefault(why.removeprefix("clean: ").removeprefix(f"check.{check}").lstrip(": "), []).append(
                    check
                )
        lines += [f"not searched: {', '.join(checks)} ({why})" for why, checks in whys.items()]
    return lines


def _undecided(ds: Dataset, left_out: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """(checks that would run if there were only one column of texts, the columns that they could look at)."""
    from leptonstore.process.checks.chosen import is_text

    strings = [field.name for field in ds.schema if is_text(field.type)]
    if len(strings) < 2:
        return [], []
    fitting: dict[str, list[str]] = {}
    for name in strings:
        alone = pa.schema([field for field in ds.schema if field.name == name or field.name not in strings])
        for check, why in left_out.items():
            if why and _fits(check, ds, alone):
                fitting.setdefault(check, []).append(name)
    return [check for check in left_out if check in fitting], next(iter(fitting.values()), [])


def _fits(check: str, ds: Dataset, schema: pa.Schema) -> bool:
    try:
        _made(check, {}, {}).bound(ds, schema).output(schema)
    except (BadInput, MissingExtra):
        return False
    return True


def _longest(ds: Dataset, texts: Sequence[str]) -> str:
    """The column with the longest texts in the first rows."""
    rows = ds.head(LOOKED_AT, texts)
    return max(texts, key=lambda name: sum(len(row[name] or "") for row in rows))


def _print(body: Mapping[str, Any], ds: Dataset, acted: bool, skipped: Sequence[str]) -> None:
    click.echo(f"{ds.label} {ds.commit[:12]}: {len(ds):,} rows, {body['seconds']:.1f} s")
    click.echo("")
    rows = [[one["check"], f"{one['found']:,}" if one["found"] else "-", one["action"]] for one in body["checks"]]
    for line in aligned(["check", "found", "action"], rows, [False, True, False]):
        click.echo(line)
    for one in body["checks"]:
        if one["worst"]:
            click.echo("")
            more = one["found"] - len(one["worst"])
            click.echo(f"{one['check']}{f' ({more:,} more)' if more else ''}")
            for line in _worst_lines(one["worst"]):
                click.echo(f"  {line}")
    click.echo("")
    for line in _result_lines(body, ds) if acted else _advice(body, ds, bool(skipped)):
        click.echo(line)
    if skipped:
        click.echo("")
        click.echo("\n".join(skipped))


def _worst_lines(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    names, right = ["row", "score", "other", "column", "detail"], [True, True, True, False, False]
    cells = [
        [
            str(one["row"]),
            "" if one["score"] is None else f"{one['score']:.4g}",
            "" if one["other"] is None else str(one["other"]),
            one_line(one["column"], 32),
            one_line(one["detail"], 100),
        ]
        for one in findings
    ]
    used = [at for at in range(len(names)) if any(row[at] for row in cells)]
    return aligned([names[at] for at in used], [[row[at] for at in used] for row in cells], [right[at] for at in used])


def _result_lines(body: Mapping[str, Any], ds: Dataset) -> list[str]:
    made = body["result"]
    place = f"{made['dataset']}@{made['branch']} {made['commit'][:12]}"
    if not made["written"]:
        return [f"nothing new: {place} is the result already"]
    gone = len(ds) - made["rows"]
    lines = [f"{place}: {made['rows']:,} rows"]
    if gone:
        lines.append(f"{gone:,} rows were left out; they stay in {ds.name}@{ds.commit[:12]}")
    if body["rows_found"]:
        lines.append(
            f"each finding is a row of {made['dataset']}.findings@{made['branch']}: lepton head {made['dataset']}.findings@{made['branch']}"
        )
    return lines


def _advice(body: Mapping[str, Any], ds: Dataset, partly: bool) -> list[str]:
    """What to do next. partly: some checks that were wanted did not run."""
    from leptonstore.process.checks.defaults import FAULTS

    found = [one["check"] for one in body["checks"] if one["found"]]
    lines = []
    if found:
        rows = f"{body['rows_found']:,} of {len(ds):,} rows have a finding"
        lines.append(f"{rows}; each is a row of {body['saved']}" if body["saved"] else f"{rows}; nothing was written")
        worst = next((one["worst"][0]["row"] for one in body["checks"] if one["worst"]), None)
        if worst is not None:
            lines.append(f"  look at one    lepton get {ds.label} {worst}")
        if body["saved"]:
            lines.append(f"  look at all    lepton report {ds.label}")
        else:
            lines.append(f"  look at all    the same with --save, then lepton report {ds.label}")
        faults = [check for check in found if check in FAULTS]
        told = [*(f"--drop {one}" for one in faults), *(f"--tag {one}" for one in found if one not in faults)]
        lines.append(f"  act on them    lepton clean {ds.label} {' '.join(told[:NAMED_MAX])} --into clean")
    else:
        nothing = "the checks that ran found nothing" if partly else "nothing was found"
        lines.append(f"{nothing}; {body['saved']} says so" if body["saved"] else nothing)
    slow = [check for check, why in body["not_searched"].items() if not why]
    if slow:
        lines.append(f"  search more    lepton clean {ds.label} {' '.join(f'--check {check}' for check in slow)}")
    return lines
