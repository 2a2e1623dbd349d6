"""`lepton reproduce`: arguments in, text or JSON out. The work is in trainers.reproduce."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from leptonstore.cli.runtime import EXIT_ERROR, emit, json_option, open_store, store_option

if TYPE_CHECKING:
    from trainers.reproduce import Comparison


@click.command("reproduce")
@click.argument("name", metavar="MODEL")
@click.option(
    "--kind", type=click.Choice(["model", "checkpoint"]), help="What MODEL is (default: a model, else a run)."
)
@click.option(
    "--model",
    "references",
    multiple=True,
    metavar="MODULE:FUNCTION",
    help="Confirm code that is not this project's; repeatable.",
)
@click.option("--keep", metavar="RUN", help="Keep the new run by this name (default: it is removed afterwards).")
@click.option("--force", is_flag=True, help="Train and compare even where equal bits cannot be expected.")
@store_option
@json_option
def reproduce(
    name: str,
    kind: str | None,
    references: tuple[str, ...],
    keep: str | None,
    force: bool,
    store: str | None,
    as_json: bool,
) -> int:
    """Train MODEL again, and compare it bit for bit.

    From the configuration, the version of the data, the seed, the threads and the step that its lineage names; the checkpoint itself may be
    gone. MODEL is a model, or a run: its newest checkpoint, or RUN@STEP. Compared are the weights (a digest over names, dtypes, shapes and
    bytes), the metrics of the last epoch, and the receipt. Where they differ, the differences between then and now are named.

    Exit codes: 0 equal bit for bit, 1 it came out otherwise, 2 it cannot be reproduced (and why), 3 its data is not here.

    \b
    Example:
      lepton reproduce mnist-cnn
      lepton reproduce mnist-1a2b3c4d@3600 --keep again
      torchrun --nproc-per-node 2 --no-python lepton reproduce mnist-ddp
    """
    from trainers.commands import ready_torch
    from trainers.commands_progress import training_progress

    ready_torch()
    from trainers import parallel
    from trainers.reproduce import read_record, reproduce, require_confirmed, require_reproducible

    with open_store(store) as opened:
        opened.refresh()
        record = read_record(opened, name, kind)
        require_confirmed(record, references)
        with parallel.joined(str(record.environment.get("device", "auto")), record.config.parallel.mesh) as world:
            if not force:
                require_reproducible(record, world.size)
            with training_progress(f"reproduce {name}") as (on_step, on_epoch):
                found = reproduce(opened, record, world, keep=keep, on_step=on_step, on_epoch=on_epoch)
    if world.is_main:
        emit(found.to_dict(), as_json, lambda: _tell(found))
    return 0 if found.equal else EXIT_ERROR


def _tell(found: Comparison) -> None:
    record = found.record
    what = f"{record.kind} {record.name} {record.commit[:12]}"
    click.echo(f"{what}: step {record.step:,} of run {record.run}, trained again in {found.seconds:.1f} s")
    _pair("weights", record.weights, found.weights, found.equal_weights)
    for key in sorted({*record.metrics, *found.metrics}):
        left, right = record.metrics.get(key), found.metrics.get(key)
        _pair(key, str(left), str(right), left == right)
    if record.receipt:
        _pair("receipt", str(record.receipt.get("head")), str(found.receipt.get("head")), found.equal_receipt)
    if found.equal:
        click.secho("equal bit for bit", fg="green", bold=True)
        return
    click.secho("it came out otherwise", fg="red", bold=True)
    for tensor in found.tensors:
        click.echo(
            f"  {tensor.name:<40} differs by {tensor.max_difference:.3g} at most, {tensor.mean_difference:.3g} on average"
        )
    if found.changed > len(found.tensors):
        click.echo(f"  and {found.changed - len(found.tensors):,} more tensors")
    for why in found.why:
        click.echo(f"  then and now: {why}")
    if not found.why:
        click.echo(
            "  nothing that the lineage names is different: it was something else (code that the model imports, say)"
        )


def _pair(label: str, recorded: str, here: str, equal: bool) -> None:
    told = here if equal else f"{here}, not {recorded}"
    click.echo(f"  {'=' if equal else '!'} {label:<18} {told}")
