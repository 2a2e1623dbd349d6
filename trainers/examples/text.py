"""A language model: collect -> clean -> tokenise -> train on packs -> write -> evaluate. `python -m trainers.examples.text --help`

The texts are the docstrings of Python's standard library. What repeats others or is no English is left out, addresses are masked, and a
fifth of the modules is held out, so that the perplexity is that of modules which neither the tokenizer nor the model has seen. It has to
be lower than that of counting pairs of tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from trainers.examples.common import better, configuration, options, step, store_in, told, train

if TYPE_CHECKING:
    from leptonstore.dataset import Dataset
    from leptonstore.process.pipeline import Result
    from leptonstore.store import Store

DATASET, RUN = "docstrings", "docstrings-transformer"
END = "<|endoftext|>"
VOCABULARY = 1_024


@click.command()
@options("text")
@click.option("--bytes", "bytes_max", type=int, default=600_000, show_default=True, help="Of text, about.")
@click.option("--epochs", type=int, help="Times through the text (default: as text.toml says).")
@click.option("--prompt", default="Return the", show_default=True, help="What the model goes on from.")
@click.option("--write", type=int, default=60, show_default=True, help="Tokens that the model writes.")
def main(
    workdir: Path, place: Path | None, quick: bool, bytes_max: int, epochs: int | None, prompt: str, write: int
) -> None:
    """Train a small transformer on the docstrings of Python's standard library, and let it write some."""
    with store_in(workdir, place) as store:
        result = run(store, workdir, quick, bytes_max, epochs, prompt, write)
    click.echo(result["text"])
    click.echo(result["line"])


def run(
    store: Store,
    workdir: Path,
    quick: bool = False,
    bytes_max: int = 600_000,
    epochs: int | None = None,
    prompt: str = "Return the",
    write: int = 60,
) -> dict[str, Any]:
    """The chain. Returns the evaluation (trainers.run.run_evaluate) with "text", "line" and the perplexities "unigram" and "bigram"."""
    from leptonstore.dataset import write_dataset
    from leptonstore.process.report import write_report
    from leptonstore.process.report_dataset import dataset_report
    from trainers.examples.corpus import docstrings
    from trainers.run import run_evaluate

    if quick:
        bytes_max, epochs = min(bytes_max, 100_000), epochs or 4
    source = step("collect", lambda: docstrings(bytes_max), lambda found: f"{found.rows:,} docstrings")
    ds = write_dataset(store, DATASET, source, "docstrings of the standard library", branch="raw")
    cleaned = step("clean", lambda: clean(store), _told_cleaning).dataset
    step("report", lambda: write_report(workdir / "report.html", dataset_report(cleaned, ds)), str)
    tokens = step("tokenise", lambda: tokenise(store, workdir / "tokenizer.json"), _told_tokens)
    values = configuration("text", {"epochs": epochs})
    # Stopped on purpose after some steps: what follows is what would have followed, bit for bit.
    step("train", lambda: train(store, f"{DATASET}@tokens", RUN, values, max_steps=10), _told_stop)
    step("resume", lambda: train(store, f"{DATASET}@tokens", RUN, values, resume=True), told)
    text = step(
        "write", lambda: continued(store, workdir / "tokenizer.json", prompt, write), lambda made: f"{made!r:.60}"
    )
    found = step(
        "evaluate",
        lambda: run_evaluate(store, f"checkpoint/{RUN}", f"{DATASET}@tokens"),
        lambda got: f"perplexity {got['perplexity']:.2f} per token",
    )
    unigram, bigram = counted(tokens, values["data"]["sequence_length"])
    if quick:  # too little text to know more than pairs
        line = better("perplexity", found["perplexity"], unigram, "tokens by how often they come", lower=True)
    else:
        line = better("perplexity", found["perplexity"], bigram, "pairs of tokens, counted and smoothed", lower=True)
    return {**found, "text": text, "line": line, "unigram": unigram, "bigram": bigram}


def clean(store: Store) -> Result:
    """docstrings@raw -> docstrings@clean, with a split: a module is on one side, whatever else there is."""
    from leptonstore.process.pipeline import Pipeline
    from leptonstore.process.registry import operation_named as operation

    return Pipeline(
        f"{DATASET}@raw",
        [
            operation("text.mask_pii", {}),
            operation("check.text_length", {"unit": "words", "min": 4, "action": "drop"}),
            operation("check.text_language", {"languages": ["en"], "action": "drop"}),
            operation("check.duplicates", {"action": "drop"}),
            operation("check.near_duplicate_texts", {"action": "drop"}),
            operation("rows.split", {"by": ["module"], "fractions": [0.8, 0.2]}),
        ],
        into=f"{DATASET}@clean",
    ).run(store)


def tokenise(store: Store, file: Path) -> Dataset:
    """docstrings@clean -> docstrings@tokens, by a tokenizer that has learnt from the training side."""
    from leptonstore.dataset import Dataset
    from leptonstore.process.operations.tokenise import train_tokenizer
    from leptonstore.process.pipeline import Pipeline
    from leptonstore.process.registry import operation_named as operation

    cleaned = Dataset.open(store, f"{DATASET}@clean")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(train_tokenizer(cleaned.split("train"), "text", VOCABULARY, (END,)), "utf-8")
    tokenised = operation("text.tokenise", {"column": "text", "tokenizer": str(file), "end": END})
    return Pipeline(f"{DATASET}@clean", [tokenised], into=f"{DATASET}@tokens").run(store).dataset


def continued(store: Store, file: Path, prompt: str, write: int, temperature: float = 0.7, seed: int = 0) -> str:
    """What the model of the newest checkpoint makes of `prompt`; up to the end of the text, where it comes to one."""
    import torch
    from tokenizers import Tokenizer

    from trainers import checkpoint as checkpoints
    from trainers.models import generate
    from trainers.tasks import LanguageModelling

    saved, tokenizer = checkpoints.load(store, RUN), Tokenizer.from_file(str(file))
    assert isinstance(saved.task, LanguageModelling)
    start = torch.tensor(tokenizer.encode(prompt).ids, dtype=torch.int64)
    model = checkpoints.build_stored_model(saved)
    made = generate(model, start, write, saved.task.length, temperature, seed).tolist()
    ends = [at for at, token in enumerate(made) if token == tokenizer.token_to_id(END)]
    return str(tokenizer.decode(made[: ends[0] if ends else None]))


def counted(ds: Dataset, length: int) -> tuple[float, float]:
    """Perplexities without learning, of the tokens that the model is measured by: of how often tokens come, and pairs of them.

    Counts are of the training side. Unigram: add one. Bigram: what was seen after a token, with as many tries of the unigram beside it
    as different tokens were seen there (Witten and Bell 1991).
    """
    before, after = pairs(ds.split("train"), length)
    size = VOCABULARY
    single = np.bincount(after, minlength=size) + 1.0
    shares = single / single.sum()
    double = np.zeros((size, size))
    np.add.at(double, (before, after), 1)
    kinds, seen = (double > 0).sum(1), double.sum(1)
    held_before, held_after = pairs(ds.split("val"), length)
    told = double[held_before, held_after] + kinds[held_before] * shares[held_after]
    # After a token that was never seen before another: the unigram.
    known = seen[held_before] > 0
    told = np.where(known, told / np.maximum(seen + kinds, 1)[held_before], shares[held_after])
    return float(np.exp(-np.log(shares[held_after]).mean())), float(np.exp(-np.log(told).mean()))


def pairs(ds: Dataset, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(token, the next one) for every target of the packs of a dataset."""
    from loaders import NumpyLoader, TokenPacks

    packs = TokenPacks(ds, "tokens", length=length)
    batches = list(NumpyLoader(packs, 64, shuffle=False, drop_last=False))
    tokens, documents = (np.concatenate([batch[name] for batch in batches]) for name in ("tokens", "segment_ids"))
    goes_on = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0)
    return tokens[:, :-1][goes_on].astype(np.int64), tokens[:, 1:][goes_on].astype(np.int64)


def _told_cleaning(result: Result) -> str:
    gone = ", ".join(f"{count} {name.removeprefix('check.')}" for name, count in result.dropped().items())
    masked = sum(1 for name in result.findings["check"].to_pylist() if name == "mask_pii")
    return f"{result.rows_out:,} stay; left out: {gone or 'none'}; addresses masked in {masked}"


def _told_tokens(ds: Dataset) -> str:
    return f"{ds.name}@{ds.ref} {ds.commit[:12]}: {VOCABULARY:,} tokens, learnt from {len(ds.split('train')):,} texts"


def _told_stop(result: dict[str, Any]) -> str:
    return f"stopped on purpose after {result['steps']} steps"


if __name__ == "__main__":
    main()
