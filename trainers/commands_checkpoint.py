"""`lepton checkpoint`: arguments in, text or JSON out. torch is imported by the commands that read tensors."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.cli.table import aligned
from leptonstore.dataset.lineage import checkpoint_spec
from trainers.listing import Listed, list_checkpoints, remove, to_remove

if TYPE_CHECKING:
    from leptonstore.store import Store
    from trainers.checkpoint import Checkpoint
    from trainers.compare import CheckpointDiff

METRICS_SHOWN = 3
TENSORS_SHOWN = 40
_AGES = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


@click.group("checkpoint")
def checkpoint() -> None:
    """List, show, compare, export, import and remove checkpoints.

    A checkpoint is RUN (the newest of the run), RUN@STEP, RUN@TAG, or RUN@ the first digits of its commit. All take --json. Tags
    (`lepton tag RUN@best --from step-000003600 --kind checkpoint`) keep a checkpoint from retention and from `rm`.

    \b
    Example:
      lepton checkpoint ls
      lepton checkpoint show mnist-1a2b3c4d
      lepton checkpoint export mnist-1a2b3c4d@3600 weights.safetensors
    """


@checkpoint.command("ls")
@click.argument("run", required=False, metavar="[RUN]")
@store_option
@json_option
def _ls(run: str | None, store: str | None, as_json: bool) -> None:
    """List the checkpoints of all runs, or of RUN.

    Their steps, age, tags, metrics, and bytes: of a checkpoint's own, and those that it shares with others of the list. The newest of a
    run stands last.

    \b
    Example:
      lepton checkpoint ls
      lepton checkpoint ls mnist-1a2b3c4d
    """
    with open_store(store) as opened:
        found = list_checkpoints(opened, run)
    emit({"checkpoints": [one.to_dict() for one in found]}, as_json, lambda: _print_list(found))


def _print_list(found: list[Listed]) -> None:
    if not found:
        click.echo("no checkpoints yet; `lepton train DATASET` makes some")
        return
    rows = [
        [
            one.run,
            one.branch if one.step is None else f"{one.step:,}",
            _age(one.time_s),
            human_bytes(one.own),
            human_bytes(one.stored - one.own),
            one.commit[:12],
            ", ".join(one.tags),
            _metrics(one.metrics),
        ]
        for one in found
    ]
    heads = ["run", "step", "age", "own", "shared", "commit", "tags", "metrics"]
    for line in aligned(heads, rows, [False, True, True, True, True, False, False, False]):
        click.echo(line)


@checkpoint.command("show")
@click.argument("name", metavar="CHECKPOINT")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--digest", is_flag=True, help="Read the weights, and print their digest.")
@click.option("--verify", is_flag=True, help="Read all of it, and compute its receipt again.")
@click.option(
    "--receipt",
    "receipt_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write its receipt, for `lepton receipt`.",
)
@store_option
@json_option
def _show(
    name: str, tensors: bool, digest: bool, verify: bool, receipt_file: Path | None, store: str | None, as_json: bool
) -> None:
    """Show CHECKPOINT: step, configuration, metrics, data, code, environment, receipt, and how large its parts are.

    --verify finds damage: it reads every tensor, and computes from the version of the data, the seed and the order which rows the run was
    handed: its receipt holds, or the first steps that differ are named.

    \b
    Example:
      lepton checkpoint show mnist-1a2b3c4d
      lepton checkpoint show mnist-1a2b3c4d@3600 --tensors
      lepton checkpoint show mnist-1a2b3c4d --verify
    """
    _ready_torch()
    with open_store(store) as opened:
        found = _open(opened, name)
        body: dict[str, Any] = {
            "run": found.run,
            "branch": found.branch,
            "commit": found.commit,
            "manifest": {key: value for key, value in found.manifest.items() if key != "tensors"},
            "tensors": found.manifest["tensors"],
        }
        if digest:
            from trainers.weights import checkpoint_digest

            body["weights"] = checkpoint_digest(found)
        if verify:
            body["verified"] = _verify(opened, found)
        if receipt_file is not None:
            _write_receipt(found, receipt_file)
        emit(body, as_json, lambda: _print_checkpoint(found, body, tensors))


def _verify(store: Store, found: Checkpoint) -> dict[str, Any]:
    """What was read and computed again. Raises what is wrong."""
    from loaders.receipt import Receipt
    from loaders.verify import replay_of
    from trainers.reproduce import open_rows, read_record

    found.verify()
    told: dict[str, Any] = {"tensors": len(found.paths), "steps": None, "rows": None}
    if found.manifest.get("receipt"):
        train, _ = open_rows(store, read_record(store, f"{found.run}@{found.commit}", "checkpoint"))
        checked = replay_of(Receipt.from_dict(found.manifest["receipt"]), train).verify()
        told |= {"steps": checked.steps, "rows": checked.rows}
    return told


def _write_receipt(found: Checkpoint, path: Path) -> None:
    from leptonstore.errors import BadInput
    from loaders.receipt import Receipt

    if not found.manifest.get("receipt"):
        raise BadInput(f"{found.whose} has no receipt: its loader kept none")
    Receipt.from_dict(found.manifest["receipt"]).save(path)


def _print_checkpoint(found: Checkpoint, body: Mapping[str, Any], all_tensors: bool) -> None:
    click.echo(f"checkpoint {found.run}@{found.branch}")
    for label, text in _facts(found, body):
        click.echo(f"  {label:<13} {text}")
    if all_tensors:
        for path, told in sorted(found.manifest["tensors"].items()):
            click.echo(f"  {path:<60} {told['dtype']:<10} {'x'.join(map(str, told['shape'])) or 'scalar'}")


def _facts(found: Checkpoint, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    told = found.manifest
    yield "commit", found.commit
    yield "step", f"{found.step:,}" + (f", {told['epoch']} epochs done" if "epoch" in told else "")
    if told.get("history"):
        yield "metrics", _metrics(told["history"][-1])
    for role, data in (told.get("data") or {}).items():
        yield role, f"{data.get('rows'):,} rows of {data.get('name')} {str(data.get('commit'))[:12]}"
    if told.get("imported"):
        files = told["imported"]["files"]
        yield (
            "imported",
            f"{told['imported']['format']}: " + ", ".join(f"{one['name']} {one['digest'][:12]}" for one in files[:5]),
        )
    config = told.get("config") or {}
    if config:
        model, optimizer = config.get("model", {}), config.get("optimizer", {})
        yield "model", f"{model.get('reference')} {model.get('params') or ''}".rstrip()
        yield "optimizer", f"{optimizer.get('name')}, peak rate {optimizer.get('lr')}, seed {config.get('seed')}"
    for one in (told.get("provenance") or {}).get("stretches", ()):
        environment = ", ".join(f"{key} {value}" for key, value in sorted(one["environment"].items()))
        yield f"from step {one['step']}", environment
    if told.get("receipt"):
        yield "receipt", f"{told['receipt']['steps']:,} steps, head {told['receipt']['head']}"
    for section, count, size in _sections(found):
        yield section, f"{count:,} tensors, {human_bytes(size)}"
    if "weights" in body:
        yield "weights", body["weights"]
    if "verified" in body:
        checked = body["verified"]
        rows = (
            ""
            if checked["steps"] is None
            else f"; the receipt holds: {checked['steps']:,} steps, {checked['rows']:,} rows"
        )
        yield "verified", f"OK: {checked['tensors']:,} tensors are what was stored{rows}"


def _sections(found: Checkpoint) -> list[tuple[str, int, int]]:
    """(first part of the path, tensors, bytes)."""
    sums: dict[str, tuple[int, int]] = {}
    for path in found.paths:
        tensor, section = found.described(path), path.partition("/")[0]
        count, size = sums.get(section, (0, 0))
        sums[section] = count + 1, size + tensor.elements * tensor.item_bytes
    return [(section, *pair) for section, pair in sorted(sums.items())]


@checkpoint.command("diff")
@click.argument("left", metavar="CHECKPOINT")
@click.argument("right", metavar="CHECKPOINT")
@click.option("--quick", is_flag=True, help="Do not read tensors: only whether they differ.")
@store_option
@json_option
def _diff(left: str, right: str, quick: bool, store: str | None, as_json: bool) -> None:
    """Compare two checkpoints, of one run or of two.

    The keys of their configurations, data, code and environments that differ; metrics; each tensor that changed, with the largest and the
    mean difference of its values; and the stored bytes that they share. Exit codes: 0 compared, 3 no such checkpoint, 4 damaged.

    \b
    Example:
      lepton checkpoint diff mnist-1a2b3c4d@1200 mnist-1a2b3c4d@3600
      lepton checkpoint diff mnist-1a2b3c4d mnist-5e6f7a8b --quick
    """
    _ready_torch()
    from trainers.compare import compare

    with open_store(store) as opened:
        found = compare(opened, _open(opened, left), _open(opened, right), values=not quick)
    emit(found.to_dict(), as_json, lambda: _print_diff(found))


def _print_diff(found: CheckpointDiff) -> None:
    click.echo(f"{found.left} -> {found.right}")
    for title, pairs in (("", found.keys), ("metrics ", found.metrics)):
        for key, (one, other) in pairs.items():
            click.echo(f"  {title}{key}: {_short(one)} -> {_short(other)}")
    for tensor in found.tensors[:TENSORS_SHOWN]:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        values = ""
        if tensor.kind == "changed" and tensor.elements:
            values = f"{tensor.elements:,} values differ, by {tensor.max_difference:.3g} at most, {tensor.mean_difference:.3g} on average"
        click.echo(f"  {tensor.kind:<9} {tensor.path:<50} {tensor.dtype} {shape}  {values}".rstrip())
    if len(found.tensors) > TENSORS_SHOWN:
        click.echo(f"  and {len(found.tensors) - TENSORS_SHOWN:,} more tensors: --json")
    click.echo(f"{len(found.tensors):,} tensors differ, {found.unchanged:,} do not")
    sizes = f"{human_bytes(found.left_bytes)} and {human_bytes(found.right_bytes)}"
    click.echo(f"{human_bytes(found.shared_bytes)} stored bytes are shared, of {sizes}")


@checkpoint.command("export")
@click.argument("name", metavar="CHECKPOINT")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--format", "kind", type=click.Choice(["safetensors", "torch"]), help="Default: by the ending of FILE.")
@click.option("--optimizer", is_flag=True, help="Also the optimizer's state.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@store_option
@json_option
def _export(
    name: str, file: Path, kind: str | None, optimizer: bool, force: bool, store: str | None, as_json: bool
) -> None:
    """Write the weights of CHECKPOINT to FILE, for tools without LeptonStore.

    As safetensors (FILE.safetensors), or as a state_dict that torch.load(weights_only=True) reads (FILE.pt). With --optimizer the file of
    torch is {"model": …, "optimizer": …}, the latter by names of weights, as torch.distributed.checkpoint.state_dict takes it.

    \b
    Example:
      lepton checkpoint export mnist-1a2b3c4d weights.safetensors
      lepton checkpoint export mnist-1a2b3c4d@3600 state.pt --optimizer
    """
    _ready_torch()
    from trainers.export import export_checkpoint

    with open_store(store) as opened:
        found = _open(opened, name)
        made = export_checkpoint(found, file, kind, optimizer, force)
    value = {"checkpoint": f"{found.run}@{found.branch}", "commit": found.commit, **vars(made)}
    emit(value, as_json, f"{file}: {made.tensors:,} tensors, {human_bytes(made.bytes)}")


@checkpoint.command("import")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.argument("run", metavar="RUN")
@click.option("--step", type=click.IntRange(min=0), help="Of the checkpoint (default: what FILE says, else 0).")
@click.option("--prefix", default="", help='Put before the name of each weight, such as "network.".')
@click.option("--weights", metavar="KEY", help="Where the weights are in FILE, when that is not found out.")
@store_option
@json_option
def _import(
    source: Path, run: str, step: int | None, prefix: str, weights: str | None, store: str | None, as_json: bool
) -> None:
    """Put a checkpoint that another tool wrote into the store, as a checkpoint of RUN.

    FILE is safetensors, a file of torch.save (read with weights_only), or a directory of torch.distributed.checkpoint. Nothing in it is
    executed: a file that holds more than tensors and plain values is refused. Its digest becomes part of the lineage. Training can begin
    with its weights (`lepton train --set model.init=RUN`).

    \b
    Example:
      lepton checkpoint import resnet18.safetensors resnet18
      lepton checkpoint import last.ckpt old-run --prefix network.
    """
    _ready_torch()
    from trainers.importing import import_checkpoint

    with open_store(store) as opened:
        made, found = import_checkpoint(opened, source, run, step, prefix, weights)
        new_bytes = opened.new_bytes
    for name in found.left_out:
        click.echo(f"lepton: warning: {name} was left out: it is neither a tensor nor a plain value", err=True)
    value = {
        "checkpoint": f"{made.run}@{made.branch}",
        "commit": made.commit,
        "format": found.format,
        "weights": len(found.weights),
        "others": len(found.others) + len(found.scalars),
        "left_out": found.left_out,
        "new_bytes": new_bytes,
    }
    emit(
        value,
        as_json,
        f"{made.run}@{made.branch} is {made.commit[:12]}: {len(found.weights):,} weights, {human_bytes(new_bytes)} new",
    )


@checkpoint.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="CHECKPOINT…")
@click.option(
    "--keep-last", type=click.IntRange(min=0), default=0, metavar="N", help="Of a whole run, keep the newest N."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_option
@json_option
def _rm(names: tuple[str, ...], keep_last: int, dry_run: bool, yes: bool, store: str | None, as_json: bool) -> None:
    """Remove checkpoints: RUN@STEP, or all of RUN. Their space is freed by the next `lepton gc`.

    One with a tag stays, whatever is asked: take the tag away first (`lepton tag -d RUN@TAG --kind checkpoint`). Models that were made
    of a checkpoint stay whole; their lineage then names a checkpoint that is gone.

    \b
    Example:
      lepton checkpoint rm mnist-1a2b3c4d@1200 --yes
      lepton checkpoint rm mnist-1a2b3c4d --keep-last 1
    """
    with open_store(store) as opened:
        going, staying = to_remove(opened, names, keep_last)
        if not as_json or not yes:
            for ref in going:
                click.echo(f"{ref.name}@{ref.branch}  {ref.commit[:12]}  {_age(ref.time_s)} old", err=as_json)
        for ref, tag in staying:
            click.echo(f"{ref.name}@{ref.branch} stays: tag {tag!r} leads to it", err=True)
        done = bool(going) and not dry_run and (yes or _asked(len(going)))
        if done:
            remove(opened, going)
    value = {
        "removed": [f"{ref.name}@{ref.branch}" for ref in going] if done else [],
        "would_remove": [] if done else [f"{ref.name}@{ref.branch}" for ref in going],
        "kept": {f"{ref.name}@{ref.branch}": tag for ref, tag in staying},
    }
    emit(value, as_json, f"removed {len(going):,}; `lepton gc` frees their space" if done else "nothing was removed")


def _asked(count: int) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("look at it with --dry-run, then give --yes")
    return click.confirm(f"remove {count:,} checkpoints?", err=True)


def _open(store: Store, name: str) -> Checkpoint:
    from trainers.checkpoint import open_checkpoint

    store.refresh()
    run, _, label = checkpoint_spec(store, name).partition("@")
    return open_checkpoint(store, run, label)


def _ready_torch() -> None:
    from trainers.commands import ready_torch

    ready_torch()


def _metrics(found: Mapping[str, Any]) -> str:
    numbers = [(name, value) for name, value in found.items() if isinstance(value, int | float) and name != "epoch"]
    more = f" … {len(numbers) - METRICS_SHOWN} more" if len(numbers) > METRICS_SHOWN else ""
    return ", ".join(f"{name} {value:.6g}" for name, value in numbers[:METRICS_SHOWN]) + more


def _age(time_s: float) -> str:
    seconds = max(0, time.time() - time_s)
    if seconds > 30 * 86_400:
        return datetime.fromtimestamp(time_s).strftime("%Y-%m-%d")
    unit, name = next(((unit, name) for unit, name in _AGES if seconds >= unit), (1, "s"))
    return f"{seconds / unit:.0f} {name}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
