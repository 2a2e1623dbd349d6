"""Ticks, point in time: appended day by day, windows of what was known, training, checks. `python -m trainers.examples.finance --help`

Trades and quotes come late and are corrected (trainers.examples.ticks). Each day is a commit, with a tag. A sample asks at a moment t
whether the mid price goes up or down: from the first quote after t to the last until t + HORIZON_S. What it may look at is
`loaders.AsOf`'s business: the last trades and quotes that were known at t, as they were known then.

Four scores on the same moments, all of the newest part of the data, whose labels training never saw:

    baseline    the better of "always the more frequent side" and "as in the last seconds"
    model       order-flow imbalance of the known trades, and the last returns; logistic regression
    hindsight   the same with the corrections of tomorrow: better than anybody could have been
    leaking     the same with windows that reach to the end of the label: impossible, and told so

The process is known, so the best possible score is known: that of its hidden flow at t. What is above it by more than chance looks ahead.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pyarrow as pa

from trainers.examples.common import better, options, step, store_in
from trainers.examples.ticks import SECOND_NS, Day, trading_days

if TYPE_CHECKING:
    from leptonstore.dataset import Dataset
    from leptonstore.store import Store
    from loaders import AsOf

INSTRUMENTS = ("ALFA", "BETA", "GAMMA", "DELTA")
HORIZON_S, WARM_UP_S = 5, 60
LAST_TRADES, LAST_QUOTES = 48, 24
REACH_S = 60  # the longest that a window looks back
VALIDATE = 0.3  # the share of the time that is for validation
DECAYS_S = (1.0, 3.0, 10.0)  # over which trades are forgotten
BACK = (2, 6, 12, 23)  # quotes ago, from which returns are taken
VARIANTS: dict[str, dict[str, str]] = {
    "model": {},
    "hindsight": {"known": "time_ns"},
    "leaking": {"moment": "ends_ns"},
}  # of `windows`
SIGMAS = 3.0  # above the best possible score; more is not chance


@click.command()
@options("finance")
def main(workdir: Path, place: Path | None, quick: bool) -> None:
    """Predict the next return of instruments from ticks that come late and are corrected, without looking ahead."""
    with store_in(workdir, place) as store:
        found = run(store, quick)
    for line in found["lines"]:
        click.echo(line)


def run(store: Store, quick: bool = False) -> dict[str, Any]:
    """The whole road. Returns the scores and counts. Raises ClickException when a check does not hold."""
    from loaders.asof import split_in_time

    days = list(trading_days(INSTRUMENTS, 3 if quick else 5, 600 if quick else 1500))
    suffix = "-quick" if quick else ""
    trades, quotes = step(
        "append",
        lambda: append_days(store, days, suffix),
        lambda two: f"{len(two[0]):,} rows of trades, {len(two[1]):,} quotes in {len(days)} commits",
    )
    moments = step(
        "moments",
        lambda: write_moments(store, quotes, days, f"moments{suffix}"),
        lambda ds: f"{len(ds):,} as {ds.name} {ds.commit[:12]}",
    )
    pinned = pinned_digests(store, moments, days[0], suffix)
    if len(set(pinned.values())) != 1:
        raise click.ClickException(f"the windows of the first day are others in later versions: {pinned}")

    times, ends = (moments.to_arrow([name]).column(0).to_numpy() for name in ("time_ns", "ends_ns"))
    boundary = np.quantile(times, 1 - VALIDATE)
    parts = split_in_time(times, ends, boundary, starts=times - REACH_S * SECOND_NS)
    train, val = (moments.select(rows) for rows in parts)
    scores, ahead = {}, {}
    for name, leak in VARIANTS.items():
        fit_on, held_out = (windows(part, trades, quotes, **leak) for part in (train, val))
        model = step(name, partial(trained, fit_on), lambda _: "fitted")
        scores[name], ahead[name] = accuracy(model, held_out), looks_ahead(held_out)
    scores["baseline"] = max(constant(train, val), momentum(windows(val, trades, quotes)))
    scores["best"] = best_possible(val, days)
    ceiling = scores["best"] + SIGMAS * math.sqrt(scores["best"] * (1 - scores["best"]) / len(val))
    lines = [
        f"{len(train):,} moments to train on, {len(val):,} held out, {len(moments) - len(train) - len(val)} purged between them",
        f"windows of {tag_of(0)}: the same from {' and '.join(pinned)} (blake2 {pinned[f'trades@{tag_of(0)}']})",
        *judged(scores, ahead, ceiling),
    ]
    return {"lines": lines, "scores": scores, "ahead": ahead, "ceiling": ceiling, "pinned": pinned}


def judged(scores: dict[str, float], ahead: dict[str, int], ceiling: float) -> Iterator[str]:
    """What the scores say, in lines. Raises ClickException when the model is no better than the baseline or looks ahead, and when the
    variant that leaks was not noticed."""
    yield better("accuracy", scores["model"], scores["baseline"], "the more frequent side, or the last return")
    yield f"best possible {scores['best']:.4f}; above {ceiling:.4f} something looks ahead"
    for name, rows in ahead.items():
        said = "impossible" if scores[name] > ceiling else "possible"
        known = f"{rows:,} rows in windows were not known yet" if rows else "every row was known"
        yield f"{name:<10}{scores[name]:.4f}  {said}; {known}"
    if ahead["model"] or scores["model"] > ceiling:
        raise click.ClickException(f"the model looks ahead: {ahead['model']} rows, accuracy {scores['model']:.4f}")
    if scores["leaking"] <= ceiling or not ahead["leaking"]:
        raise click.ClickException("the leaking variant was not noticed, so the check proves nothing")


# -- the store -----------------------------------------------------------------------------------------------------------


def tag_of(day: int) -> str:
    """The tag of what was known at the close of a day."""
    return f"close-{day + 1}"


def append_days(store: Store, days: list[Day], suffix: str = "") -> tuple[Dataset, Dataset]:
    """Each day what came in is appended to `trades` and `quotes`, and tagged. Days whose tag is there already are not appended again."""
    from leptonstore.dataset import Dataset, list_refs

    made = []
    for name in ("trades", "quotes"):
        full = f"{name}{suffix}"
        tags = {info.branch for info in list_refs(store, "dataset", full) if info.tag}
        for number, day in enumerate(days):
            if tag_of(number) in tags:
                continue
            rows = day.trades if name == "trades" else day.quotes
            if number == 0:
                ds = Dataset.create(store, full, rows, message="the first day")
            else:
                ds = Dataset.open(store, full).append(rows, f"day {number + 1}")
            ds.tag(tag_of(number))
        made.append(Dataset.open(store, f"{full}@{tag_of(len(days) - 1)}"))
    return made[0], made[1]


def write_moments(store: Store, quotes: Dataset, days: list[Day], name: str) -> Dataset:
    """Every second of every day and instrument, and whether the mid price went up between the first quote after it and the last until
    HORIZON_S later. Where it stayed there is no moment."""
    from leptonstore.dataset import Source, write_dataset
    from leptonstore.dataset.schema import class_label_field

    label = class_label_field("label", ["down", "up"])
    schema = pa.schema(
        [pa.field("instrument", pa.string()), pa.field("time_ns", pa.int64()), pa.field("ends_ns", pa.int64()), label]
    )
    table = quotes.to_arrow()
    mids = (table["bid"].to_numpy() + table["ask"].to_numpy()) / 2
    stamps, of = table["time_ns"].to_numpy(), np.asarray(table["instrument"])
    parts = []
    for instrument in INSTRUMENTS:
        mine = np.flatnonzero(of == instrument)
        mine = mine[np.argsort(stamps[mine])]
        for day in days:
            asked = np.arange(day.opens_ns + WARM_UP_S * SECOND_NS, day.closes_ns - HORIZON_S * SECOND_NS, SECOND_NS)
            ends = asked + HORIZON_S * SECOND_NS
            enter = np.searchsorted(stamps[mine], asked, side="right")  # the first after the moment
            leave = np.searchsorted(stamps[mine], ends, side="right") - 1  # the last until the end
            change = mids[mine[leave]] - mids[mine[enter]]
            kept = (leave > enter) & (np.abs(change) > 1e-9)
            columns = [
                pa.array([instrument] * int(kept.sum())),
                asked[kept],
                ends[kept],
                (change[kept] > 0).astype(np.uint8),
            ]
            parts.append(pa.table([pa.array(column) for column in columns], schema=schema))
    rows = pa.concat_tables(parts).sort_by([("time_ns", "ascending"), ("instrument", "ascending")])
    lineage = {"format": "moments", "quotes": quotes.commit, "horizon_s": HORIZON_S}
    source = Source(schema, ("instrument", "time_ns"), lambda: iter(rows.to_batches()), rows.num_rows, lineage)
    return write_dataset(store, name, source, f"returns over {HORIZON_S} s")


# -- windows -------------------------------------------------------------------------------------------------------------


def windows(
    moments: Dataset, trades: Dataset, quotes: Dataset, moment: str = "time_ns", known: str = "known_ns"
) -> AsOf:
    """What was known at each moment. `moment` and `known` are for the variants that look ahead: the end of the label as the moment, the
    event's own time as when it was known."""
    from loaders import AsOf, Known

    reach = REACH_S * SECOND_NS
    return AsOf(
        moments,
        moment,
        {
            "trade": Known(
                trades, "time_ns", known, LAST_TRADES, ("id",), reach, "withdrawn", ["time_ns", "known_ns", "size"]
            ),
            "quote": Known(quotes, "time_ns", known, LAST_QUOTES, (), reach, None, ["known_ns", "bid", "ask"]),
        },
        group="instrument",
    )


def pinned_digests(store: Store, moments: Dataset, day: Day, suffix: str) -> dict[str, str]:
    """Version -> digest of all windows of the first day, from the first day's version of the ticks and from the newest."""
    from leptonstore.dataset import Dataset
    from loaders import NumpyLoader

    first = moments.filter(f"time_ns < {day.closes_ns}")
    out = {}
    for ref in (tag_of(0), "main"):
        trades, quotes = (Dataset.open(store, f"{name}{suffix}@{ref}") for name in ("trades", "quotes"))
        digest = hashlib.blake2b(digest_size=6)
        for batch in NumpyLoader(windows(first, trades, quotes), 512):
            for values in batch.values():
                digest.update(values.tobytes() if isinstance(values, np.ndarray) else "\n".join(values).encode())
        out[f"trades@{ref}"] = digest.hexdigest()
    return out


def looks_ahead(some: AsOf) -> int:
    """Rows in the windows that nobody knew at their moment."""
    from loaders import DataLoader

    names = ["time_ns", "trade.known_ns", "quote.known_ns"]
    return sum(
        int((batch[name] > batch["time_ns"][:, None]).sum())
        for batch in DataLoader(some, 1024, columns=names)
        for name in names[1:]
    )


# -- the model -----------------------------------------------------------------------------------------------------------


def features(batch: dict[str, Any]) -> Any:
    """(batch, features): imbalance of the signed trades at several decays, and returns since several quotes ago, in units of 1e-4."""
    import torch

    ages = (batch["time_ns"][:, None] - batch["trade.time_ns"]).double() / SECOND_NS
    sides = batch["trade.size"].sign().double()
    kernels = [torch.exp(-ages.clamp(min=0) / decay) for decay in DECAYS_S]
    imbalance = [(sides * kernel).sum(1) / kernel.sum(1) for kernel in kernels]
    mids = ((batch["quote.bid"] + batch["quote.ask"]) / 2).log()
    returns = [(mids[:, -1] - mids[:, -1 - back]) * 1e4 for back in BACK]
    return torch.stack([*imbalance, *returns], 1).float()


def trained(some: AsOf, epochs: int = 3, seed: int = 0) -> Any:
    """A logistic regression over `features`, by Adam."""
    import torch

    from loaders import DataLoader

    torch.manual_seed(seed)
    model = torch.nn.Linear(len(DECAYS_S) + len(BACK), 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    loader = DataLoader(some, 256, shuffle=True, seed=seed)
    for _ in range(epochs):
        for batch in loader:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                model(features(batch))[:, 0], batch["label"].float()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def accuracy(model: Any, some: AsOf) -> float:
    """How often the model has the sign right."""
    import torch

    from loaders import DataLoader

    with torch.inference_mode():
        right = sum(
            int(((model(features(batch))[:, 0] > 0) == (batch["label"] == 1)).sum()) for batch in DataLoader(some, 1024)
        )
    return right / len(some)


def constant(train: Dataset, val: Dataset) -> float:
    """How often the side that is more frequent in training is right."""
    before, after = (ds.to_arrow(["label"]).column(0).to_numpy().mean() for ds in (train, val))
    return float(after if before >= 0.5 else 1 - after)


def momentum(some: AsOf) -> float:
    """How often the next return has the sign of the last one, over as long."""
    from loaders import DataLoader

    right = 0
    for batch in DataLoader(some, 1024):
        last = features(batch)[:, len(DECAYS_S) + BACK.index(12)]
        right += int(((last > 0) == (batch["label"] == 1)).sum())
    return right / len(some)


def best_possible(val: Dataset, days: list[Day]) -> float:
    """How often the sign of the hidden flow at the moment is right. The process has no memory but the flow, so nobody is better."""
    table = val.to_arrow()
    times, labels, of = table["time_ns"].to_numpy(), table["label"].to_numpy(), np.asarray(table["instrument"])
    right = 0
    for day in days:
        for instrument, (stamps, flow) in day.flow.items():
            mine = (of == instrument) & (times >= day.opens_ns) & (times < day.closes_ns)
            now = flow[np.searchsorted(stamps, times[mine], side="right") - 1]
            right += int(((now > 0) == (labels[mine] == 1)).sum())
    return right / len(times)


if __name__ == "__main__":
    main()
