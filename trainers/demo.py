"""`lepton demo`: the whole chain on one screen, from raw files to predictions, each step named and timed.

collect -> store -> clean -> analyse -> visualise -> preprocess -> train -> evaluate -> deploy -> predict

Every step is the real one that the other commands run. Data goes onto the branches NAME@raw, NAME@clean and NAME@prepared,
so that running the demo again in the same directory finds everything there and adds nothing.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from leptonstore.cli.runtime import human_bytes, json_option
from leptonstore.errors import MissingExtra
from trainers.openmp import spin_briefly

if TYPE_CHECKING:
    from leptonstore.dataset import Dataset
    from leptonstore.process.clean import CleanReport
    from leptonstore.process.gallery import Sample
    from leptonstore.process.report import EvaluationSection, Report
    from leptonstore.store import Store
    from trainers.deploy import Bundle

T = TypeVar("T")
DEFAULT_WORKDIR = "lepton-demo"
PREDICTED_IMAGES = 10  # held-out images that are labelled at the end, enough to look at


@click.command("demo")
@click.option("--data", metavar="DIR", help="IDX files or a folder of images (default: scikit-learn's digits).")
@click.option("--workdir", metavar="DIR", default=DEFAULT_WORKDIR, show_default=True, help="Store and report go here.")
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Times through the training rows (default: by their number)."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides weights and order.")
@json_option
def command(data: str | None, workdir: str, epochs: int | None, seed: int, as_json: bool) -> None:
    """Run the whole chain: collect, store, clean, analyse, visualise, preprocess, train, evaluate, deploy, predict.

    \b
    Example:
      lepton demo
      lepton demo --data mnist/ --epochs 5 --workdir /tmp/demo
    """
    for module, extra in (("torch", "train"), ("jinja2", "process"), ("PIL", "process"), ("sklearn", "process")):
        if find_spec(module) is None:
            raise MissingExtra("the demo", f"{extra},train" if extra == "process" else "process,train", module)
    spin_briefly()
    result = Demo(Path(workdir), quiet=as_json and not sys.stderr.isatty()).run(data or "digits", epochs, seed)
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False))


@dataclass
class Demo:
    """One run. `steps` collects (name, seconds, what came out). Prints to stderr, so that stdout is for --json."""

    workdir: Path
    quiet: bool = False
    steps: list[tuple[str, float, str]] = field(default_factory=list)

    def _step(self, name: str, work: Callable[[], T], tell: Callable[[T], str]) -> T:
        """Run one step, time it, and say in one line what came out."""
        if not self.quiet:
            click.echo(f"{name:<11}", nl=False, err=True)
        begin = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - begin
        summary = tell(result)
        self.steps.append((name, seconds, summary))
        if not self.quiet:
            click.echo(f"{seconds:>7.2f} s  {summary}", err=True)
        return result

    def run(self, data: str, epochs: int | None, seed: int) -> dict[str, Any]:
        """The chain. Returns what --json prints. Raises what its steps raise."""
        from leptonstore.dataset import write_dataset
        from leptonstore.dataset.importers import open_source
        from leptonstore.process.analyse import analyse
        from leptonstore.process.clean import apply_clean, find
        from leptonstore.process.gallery import finding_samples, pick_samples
        from leptonstore.process.preprocess import prepare
        from leptonstore.process.report import Report, write_report

        name = _name_of(data)
        source = self._step("collect", lambda: open_source(data), lambda s: f"{_rows(s.rows)} in {data}")
        with self._open_store() as store:
            raw = self._step(
                "store",
                lambda: write_dataset(store, name, source, f"import of {name}", branch="raw"),
                lambda ds: f"{len(ds):,} rows as {ds.name}@raw {ds.commit[:12]}, {human_bytes(store.new_bytes)} new",
            )

            def clean() -> tuple[CleanReport, Dataset]:
                found = find(raw)
                return found, apply_clean(store, raw, found, branch="clean")

            report, cleaned = self._step("clean", clean, lambda pair: _tell_clean(*pair))
            # Without looking for leakage: cleaning has just done that.
            analysis = self._step("analyse", lambda: analyse(cleaned, leakage=False), lambda _: _tell_sizes(cleaned))
            page = self.workdir / "report.html"
            first = Report(
                title=name,
                subtitle="What the store holds, and what cleaning found.",
                dataset=cleaned,
                analysis=analysis,
                clean=report,
                findings=finding_samples(raw, report),
                samples=pick_samples(cleaned),
            )
            self._step("visualise", lambda: write_report(page, first), lambda path: f"{path}")
            prepared = self._step(
                "preprocess",
                lambda: prepare(store, cleaned, seed=seed, branch="prepared"),
                lambda ds: f"{len(ds):,} rows, splits {', '.join(ds.splits())}",
            )
            new_bytes = store.new_bytes
            trained = self._train(store, prepared, epochs, seed)
            bundle, evaluation, predictions = self._after_training(store, prepared, trained, name)
            self._finish(page, first, prepared, trained, bundle, evaluation, predictions)
            return _result(store, prepared, raw, trained, bundle, evaluation, new_bytes, page)

    def _open_store(self) -> Store:
        from leptonstore.store import Store
        from leptonstore.store.config import DOCUMENT

        place = self.workdir / "store"
        return Store.open(place) if (place / DOCUMENT).exists() else Store.create(place)

    def _train(self, store: Store, prepared: Dataset, epochs: int | None, seed: int) -> dict[str, Any]:
        from trainers.commands_progress import training_progress
        from trainers.run import run_train

        values: dict[str, Any] = {"seed": seed, **({"epochs": epochs} if epochs else {})}
        spec = f"{prepared.name}@{prepared.ref}"

        def work() -> dict[str, Any]:
            with training_progress("train") as (on_step, on_epoch):
                return run_train(
                    store,
                    spec,
                    values,
                    metrics=self.workdir / "metrics.jsonl",
                    on_step=on_step,
                    on_epoch=on_epoch,
                )

        return self._step(
            "train",
            work,
            lambda r: (
                f"{r['epochs']} epochs, {r['us_per_sample']:.0f} us per sample, "
                f"{r['data_wait_fraction']:.2%} of it waiting for data"
            ),
        )

    def _after_training(
        self, store: Store, prepared: Dataset, trained: dict[str, Any], name: str
    ) -> tuple[Bundle, EvaluationSection, list[Sample]]:
        from trainers.deploy import deploy, load_bundle
        from trainers.evaluate import evaluate
        from trainers.evaluation_report import Worst, section
        from trainers.run import plan
        from trainers.tasks import ImageClassification

        config, _, held_out = plan(store, prepared, {})
        bundle = self._step(
            "deploy",
            lambda: deploy(store, trained["run"], f"{name}-cnn"),
            lambda made: f"model {made.name} {made.commit[:12]}, from data {prepared.commit[:12]}",
        )

        def judge() -> EvaluationSection:
            task = bundle.task
            assert isinstance(task, ImageClassification)  # what the demo has prepared
            worst = Worst(task)
            found = evaluate(load_bundle(store, bundle.name), held_out, config.data, watch=worst)
            return section(held_out, task, found, worst, "held out")

        evaluation = self._step(
            "evaluate",
            judge,
            lambda found: f"accuracy {found.accuracy:.4f} on {len(held_out):,} rows held out",
        )
        predictions = self._step("predict", lambda: _predict(bundle, held_out), _tell_predictions)
        return bundle, evaluation, predictions

    def _finish(
        self,
        page: Path,
        first: Report,
        prepared: Dataset,
        trained: dict[str, Any],
        bundle: Bundle,
        evaluation: EvaluationSection,
        predictions: list[Sample],
    ) -> None:
        """The report once more, with what training brought."""
        from dataclasses import replace

        from leptonstore.process.report import write_report

        whole = replace(
            first,
            subtitle="From raw files to predictions: what the store holds, and the model that it made.",
            dataset=prepared,
            training=trained["history"],
            evaluation=evaluation,
            predictions=predictions,
            steps=self.steps,
        )
        write_report(page, whole)
        if not self.quiet:
            click.echo(f"report      {page}", err=True)


def _predict(bundle: Bundle, held_out: Dataset) -> list[Sample]:
    """Label some held-out images as if they were new: through PNG files, as `lepton predict` gets them."""
    import io

    from leptonstore.process.gallery import Sample
    from leptonstore.process.images import decode, thumbnail_png
    from trainers.predict import predict_images

    rows = [at * len(held_out) // PREDICTED_IMAGES for at in range(min(PREDICTED_IMAGES, len(held_out)))]
    pictures = [held_out[row][bundle.task.inputs] for row in rows]
    files = [io.BytesIO(thumbnail_png(picture, max(picture.shape[:2]))).getvalue() for picture in pictures]
    found = predict_images(bundle, [decode(data) for data in files])
    return [
        Sample(row, picture, one.label, f"{one.confidence:.1%}")
        for row, picture, one in zip(rows, pictures, found, strict=True)
    ]


def _name_of(data: str) -> str:
    """A dataset name from a path: its last part, with only the characters that names have."""
    last = Path(data).absolute().name if data != "digits" else data
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "data"


def _rows(rows: int | None) -> str:
    return "rows" if rows is None else f"{rows:,} rows"


def _tell_clean(report: CleanReport, cleaned: Dataset) -> str:
    counts = {getattr(reason, "value", reason): count for reason, count in report.counts().items() if count}
    told = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    return f"{told}: removed in {cleaned.name}@clean {cleaned.commit[:12]}" if told else "nothing to remove"


def _tell_sizes(dataset: Dataset) -> str:
    stats = dataset.stats()
    return f"{human_bytes(stats.logical_bytes)} as {human_bytes(stats.stored_bytes)} ({stats.stored_ratio:.1%})"


def _tell_predictions(predictions: list[Sample]) -> str:
    return f"{len(predictions)} images: " + " ".join(sample.label for sample in predictions)


def _result(
    store: Store,
    prepared: Dataset,
    raw: Dataset,
    trained: dict[str, Any],
    bundle: Bundle,
    evaluation: EvaluationSection,
    new_bytes: int,
    page: Path,
) -> dict[str, Any]:
    """The fields of --json. Bytes of the dataset count every version of it that the demo made, each chunk once."""
    from leptonstore.dataset import list_refs
    from leptonstore.dataset.refs import ancestry
    from leptonstore.dataset.stats import stored_bytes

    versions = [*ancestry(store, prepared.commit), raw.commit]
    kept = [ref.commit for ref in list_refs(store, "checkpoint", trained["run"])]
    return {
        "dataset": f"{prepared.name}@{prepared.ref}",
        "train_samples": trained["train_samples"],
        "val_samples": trained["val_samples"],
        "val_accuracy": evaluation.accuracy,
        "us_per_sample": trained["us_per_sample"],
        "data_wait_fraction": trained["data_wait_fraction"],
        "logical_bytes": prepared.commit_object.plain_bytes,
        "stored_bytes": stored_bytes(store, versions),
        "checkpoint_bytes": stored_bytes(store, kept),
        "new_bytes": new_bytes,
        "commit": prepared.commit,
        "model": bundle.commit,
        "report": str(page),
    }
