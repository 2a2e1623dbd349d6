"""`lepton train`, `evaluate` and `predict`: arguments in, text or JSON out. The work is in trainers.run.

torch is imported when a command runs, so that `--help` of each is quick. Under torchrun every rank runs the command,
and rank 0 alone prints.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leptonstore.cli.cache import cache_choice, cache_warnings, read_cache_options
from leptonstore.cli.prices import prices_option, read_prices
from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.errors import BadInput, MissingExtra
from trainers.commands_progress import training_progress
from trainers.config import DEVICES
from trainers.config_tree import read_toml
from trainers.openmp import spin_briefly

if TYPE_CHECKING:
    from trainers.run import Cache

TOLD_PHASES = ("setup", "data_wait", "h2d", "compute", "sync", "checkpoint", "evaluation", "other")


@click.command("train")
@click.argument("dataset", metavar="DATASET")
@store_option
@click.option("--config", "config_file", metavar="FILE.toml", help="Keys of the configuration; options replace them.")
@click.option("--epochs", type=int, help="Times through the training rows (default: by their number).")
@click.option("--batch-size", type=int, help="Rows of one step, all ranks together (default: by their number).")
@click.option("--lr", type=float, help="Peak learning rate (default: 0.003).")
@click.option("--seed", type=int, help="Decides weights and order (default: 0).")
@click.option("--model", metavar="MODULE:FUNCTION", help="Model factory (default: trainers.models:cnn).")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the configuration; repeatable.")
# torchrun takes a bare --run for its own --run-path, even behind the module: hence the longer name.
@click.option(
    "--run-name", "--run", "run", metavar="NAME", help="Name of the run (default: from data and configuration)."
)
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of the run.")
@click.option("--auto-resume", is_flag=True, help="As --resume if the run has a checkpoint, else start it.")
@click.option(
    "--fallback", is_flag=True, help="Resume from the newest checkpoint that is whole, if that one is damaged."
)
@click.option("--max-steps", type=click.IntRange(min=1), help="Save and stop once the run has done this many steps.")
@click.option("--checkpoint-every", type=int, metavar="STEPS", help="Save so often, and after every epoch.")
@click.option("--threads", type=int, help="CPU threads of torch (default: torch's choice).")
@click.option("--device", type=click.Choice(list(DEVICES)), help="Where to train (default: auto).")
@click.option(
    "--metrics", metavar="FILE.jsonl", help="Where every step and epoch is logged (default: the result says it)."
)
@click.option(
    "--log-to",  # torchrun takes a bare --log for its own --log-dir, as it does with --run
    "--log",
    "sinks",
    multiple=True,
    metavar="KIND:PLACE",
    help="Curves for others too: tensorboard:DIR, mlflow:URI, wandb:PROJECT; repeatable.",
)
@click.option(
    "--profile",
    is_flag=False,
    flag_value="profile",
    metavar="[DIR]",
    help="Say what takes the time of a step and what to change; with a trace of some steps in DIR (default: profile).",
)
@prices_option
@read_cache_options
@json_option
def train(
    dataset: str,
    store: str | None,
    config_file: str | None,
    settings: tuple[str, ...],
    run: str | None,
    resume: bool,
    auto_resume: bool,
    fallback: bool,
    max_steps: int | None,
    metrics: str | None,
    sinks: tuple[str, ...],
    profile: str | None,
    table: Path | None,
    folder: Path | None,
    cache_size: int | None,
    no_cache: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on DATASET (NAME or NAME@REF), with checkpoints in the store.

    A --run-name that has checkpoints is refused without --resume or --auto-resume.

    Ctrl-C (or SIGTERM) finishes the step, saves, and stops; --resume goes on as if nothing had happened. Ranks that torchrun
    starts again (--max-restarts) go on from the newest checkpoint by themselves.

    \b
    Example:
      lepton train mnist --epochs 5
      lepton train mnist --config mine.toml --set optimizer.lr=0.01
      lepton train mnist --run-name mine --resume
      lepton train mnist --log tensorboard:curves --profile
      torchrun --nproc-per-node 2 --max-restarts 3 -m trainers mnist --run-name mine --auto-resume
    """
    ready_torch()
    from trainers.run import run_train

    values, prices = _values(config_file, settings, options), read_prices(table)
    cache = _cache(folder, cache_size, no_cache)
    with (
        open_store(store) as opened,
        cache_warnings(),
        training_progress(f"train {dataset}") as (on_step, on_epoch),
    ):
        result = run_train(
            opened,
            dataset,
            values,
            cache=cache,
            run=run,
            resume=resume or ("auto" if auto_resume or _restarted() else False),
            fallback=fallback,
            max_steps=max_steps,
            metrics=metrics,
            log=sinks,
            profile=profile,
            prices=prices,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    if not _is_main():
        return
    for warning in result["warnings"]:
        click.echo(f"lepton: warning: {warning}", err=True)
    emit(result, as_json, lambda: _tell_training(result))


@click.command("evaluate")
@click.argument("model", metavar="MODEL")
@click.argument("dataset", metavar="DATASET")
@store_option
@click.option("--split", metavar="NAME", help='Rows of this split, or "all" (default: those that training held out).')
@click.option("--report", metavar="FILE.html", help="Write a page: figures, confusion matrix, the worst rows.")
@read_cache_options
@json_option
def evaluate(
    model: str,
    dataset: str,
    store: str | None,
    split: str | None,
    report: str | None,
    folder: Path | None,
    cache_size: int | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Measure MODEL, a deployed one or checkpoint/RUN, on DATASET: of classes accuracy and confusion, of text perplexity.

    \b
    Example:
      lepton evaluate mnist-cnn mnist --split test
      lepton evaluate checkpoint/my-run texts --report worst.html
    """
    ready_torch()
    from trainers.run import run_evaluate

    cache = _cache(folder, cache_size, no_cache)
    with open_store(store) as opened, cache_warnings():
        result = run_evaluate(opened, model, dataset, split, cache, report)

    def text() -> None:
        click.echo(f"{'rows':<20} {result['rows']:,} of {dataset}")
        for name, value in result.items():
            if isinstance(value, float) or (value is None and name == "loss"):
                click.echo(f"{name.replace('_', ' '):<20} {'no number' if value is None else f'{value:.4f}'}")
        for score in result.get("per_class", ()):
            shares = f"recall {score['recall']:.4f}  precision {score['precision']:.4f}"
            click.echo(f"  {score['name']:<12} {shares}  {score['rows']:>8,} rows")
        if "report" in result:
            click.echo(f"{'report':<20} {result['report']}")

    emit(result, as_json, text)


@click.command("predict")
@click.argument("model", metavar="MODEL")
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@store_option
@click.option(
    "--dataset", metavar="NAME", help="Predict for every row of this dataset, as a new version on NAME@predictions."
)
@read_cache_options
@json_option
def predict(
    model: str,
    images: tuple[str, ...],
    store: str | None,
    dataset: str | None,
    folder: Path | None,
    cache_size: int | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Label IMAGE files, or predict for every row of a dataset, with MODEL: a deployed one, or checkpoint/RUN.

    \b
    Example:
      lepton predict mnist-cnn seven.png
      lepton predict mnist-cnn --dataset mnist
    """
    ready_torch()
    from trainers.run import run_predict_dataset, run_predict_images

    if bool(images) == (dataset is not None):
        raise click.UsageError("give image files, or --dataset NAME")
    cache = _cache(folder, cache_size, no_cache)
    with open_store(store) as opened, cache_warnings():
        if dataset is not None:
            made = run_predict_dataset(opened, model, dataset, cache)
            emit(made, as_json, f"{made['dataset']} is {made['commit'][:12]}: {made['rows']:,} rows predicted")
            return
        result = run_predict_images(opened, model, images)

    def text() -> None:
        for prediction in result["predictions"]:
            click.echo(f"{prediction['label']:<12} {prediction['confidence']:.4f}  {prediction['source']}")

    emit(result, as_json, text)


def ready_torch() -> None:
    """Raises MissingExtra; else torch may be imported."""
    if find_spec("torch") is None:
        raise MissingExtra("training", "train", "torch")
    spin_briefly()


def _cache(folder: Path | None, cache_size: int | None, no_cache: bool) -> Cache | None:
    from trainers.run import Cache

    chosen = cache_choice(folder, cache_size, no_cache)
    return None if chosen is None else Cache(*chosen)


def _values(config_file: str | None, settings: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Configuration keys from the file, the options that were given, and --set, each over those before. Raises BadInput."""
    keys = {
        "epochs": "epochs",
        "batch_size": "data.global_batch_size",
        "lr": "optimizer.lr",
        "seed": "seed",
        "model": "model.reference",
        "checkpoint_every": "checkpoint.every_steps",
        "threads": "threads",
        "device": "device",
    }
    values = read_toml(config_file) if config_file else {}
    values |= {key: options[option] for option, key in keys.items() if options[option] is not None}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise BadInput(f"--set takes KEY=VALUE, not {setting!r}")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    return values


def _restarted() -> bool:
    """Whether torchrun has started these ranks again after one of them ended."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _tell_training(result: dict[str, Any]) -> None:
    done = "finished" if result["finished"] else "stopped early"
    click.echo(
        f"run {result['run']} {done} after {result['steps']:,} steps on {result['dataset']} {result['commit'][:12]}"
    )
    click.echo(f"task          {result['task']}")
    rows = f"{result['val_samples']:,} rows"
    loss = "no number" if result["val_loss"] is None else f"{result['val_loss']:.4f}"
    if result["val_accuracy"] is not None:
        click.echo(f"accuracy      {result['val_accuracy']:.4f}  (loss {loss}) on {rows} held out")
    elif result["finished"] or result["val_loss"] is not None:  # else it was not evaluated
        click.echo(f"loss          {loss} on {rows} held out")
    speed = f"{result['us_per_sample']:.1f} us per sample"
    click.echo(f"speed         {speed}, {result['data_wait_fraction']:.2%} of it waiting for data")
    _tell_usage(result)
    click.echo(f"checkpoint    {result['checkpoint'][:12]}; next: lepton deploy {result['run']}")
    if result["log"]:
        click.echo(f"log           {result['log']}")
    if result["profile"]:
        click.echo(result["profile"]["text"])


def _tell_usage(result: dict[str, Any]) -> None:
    usage, cost = result["usage"], result["usage"]["cost"]
    share = {name: result[f"{name}_s"] / result["wall_s"] for name in TOLD_PHASES} if result["wall_s"] else {}
    told = ", ".join(
        f"{name} {part:.0%}" for name, part in sorted(share.items(), key=lambda one: -one[1]) if part >= 0.005
    )
    click.echo(f"time          {result['wall_s']:,.1f} s: {told}")
    device = "1 device" if usage["devices"] == 1 else f"{usage['devices']:,} devices"
    hours = f"{usage['device_hours']:.3g} device-hours ({device}, {usage['device']}), {usage['idle_fraction']:.1%} idle"
    paid = "" if cost["devices"] is None else f"; {cost['devices']:.2g} at {cost['device_hour']:g} an hour"
    click.echo(f"used          {hours}{paid}")
    read = sum(usage["read_bytes"].values())
    moved = f"{human_bytes(read)} read of the store, {human_bytes(usage['data_bytes'])} of batches, "
    moved += f"{human_bytes(usage['checkpoint_bytes'])} of checkpoints"
    if usage["collective_bytes"]:
        moved += f", {human_bytes(usage['collective_bytes'])} of gradients between ranks"
    click.echo(f"moved         {moved}")
