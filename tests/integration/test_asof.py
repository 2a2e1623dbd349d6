"""Point-in-time windows in a loader: shapes, states, several tracks, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import AsOf, DataLoader, Known, LoaderStateError  # noqa: E402
from loaders.asof import split_in_time  # noqa: E402

Make = Callable[..., Source]
S = 1_000_000_000
ROWS = 600


@pytest.fixture
def tables(store: Store, source_of: Make) -> dict[str, Dataset]:
    """Trades of two instruments a second apart, known half a second later; every seventh is corrected 30 s later. Quotes at once."""
    trades, quotes = [], []
    for number in range(ROWS):
        name, t = "ab"[number % 2], number * S // 2
        trades.append((name, number, t, t + S // 2, float(number), f"first {number}"))
        if number % 7 == 0:
            trades.append((name, number, t, t + 30 * S, -float(number), f"again {number}"))
        quotes.append((name, t, t, number))
    names = ("name", "id", "t", "known", "price", "note")
    table = pa.table(dict(zip(names, (list(column) for column in zip(*trades, strict=True)), strict=True)))
    quoted = pa.table(dict(zip(("name", "t", "known", "bid"), map(list, zip(*quotes, strict=True)), strict=True)))
    moments = pa.table(
        {"name": ["ab"[n % 2] for n in range(120)], "t": [(100 + n) * S for n in range(120)], "label": range(120)}
    )
    return {
        "trades": write_dataset(store, "trades", source_of(table, ("name", "id"))),
        "quotes": write_dataset(store, "quotes", source_of(quoted, ("name", "t"))),
        "moments": write_dataset(store, "moments", source_of(moments, ("name", "t"))),
    }


def windows(tables: dict[str, Dataset], **options: Any) -> AsOf:
    return AsOf(
        tables["moments"],
        "t",
        {
            "trade": Known(
                tables["trades"], "t", "known", options.pop("last", 40), ("id",), columns=["t", "id", "price", "note"]
            ),
            "quote": Known(tables["quotes"], "t", "known", 3, columns=["bid", "t"]),
        },
        group="name",
        **options,
    )


@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 2}, {"arena_bytes_max": 0}, {"columns": ["trade.price", "label"]}]
)
def test_a_batch_has_windows_of_every_track(tables: dict[str, Dataset], options: dict[str, Any]) -> None:
    seen = 0
    for batch in DataLoader(windows(tables), 16, shuffle=True, **options):
        assert batch["trade.price"].shape == (len(batch["label"]), 40) and batch["trade.price"].dtype == torch.float64
        for place, label in enumerate(batch["label"].tolist()):
            t = (100 + label) * S
            newest = [number for number in range(ROWS) if number % 2 == label % 2 and number * S // 2 + S // 2 <= t][
                -40:
            ]
            prices = [-number if number % 7 == 0 and number * S // 2 + 30 * S <= t else number for number in newest]
            assert batch["trade.price"][place].tolist() == prices
            if "columns" in options:
                assert set(batch) == {"trade.price", "label"}
                continue
            assert batch["trade.note"][place] == [
                f"{'again' if price < 0 else 'first'} {abs(price)}" for price in prices
            ]
            assert (
                batch["quote.bid"][place].tolist()
                == [n for n in range(ROWS) if n % 2 == label % 2 and n * S // 2 <= t][-3:]
            )
            seen += 1
    assert "columns" in options or seen == len(tables["moments"])


def test_the_position_is_kept_and_other_windows_are_told_apart(tables: dict[str, Dataset]) -> None:
    loader = DataLoader(windows(tables), 10, shuffle=True, seed=3)
    labels = [batch["label"].tolist() for batch in loader]
    first = DataLoader(windows(tables), 10, shuffle=True, seed=3)
    iterator = iter(first)
    assert [next(iterator)["label"].tolist() for _ in range(4)] == labels[:4]
    again = DataLoader(pickle.loads(pickle.dumps(windows(tables))), 10, shuffle=True, seed=3)  # noqa: S301
    again.load_state_dict(first.state_dict())
    assert [batch["label"].tolist() for batch in again] == labels[4:]
    with pytest.raises(LoaderStateError):
        DataLoader(windows(tables, last=39), 10, shuffle=True, seed=3).load_state_dict(first.state_dict())


def test_a_moment_at_which_too_little_was_known_is_left_out_or_refused(tables: dict[str, Dataset]) -> None:
    some = windows(tables, last=150)
    assert 0 < len(some) < len(tables["moments"]) and some.dropped == len(tables["moments"]) - len(some)
    assert len(windows(tables, last=10_000)) == 0 and list(DataLoader(windows(tables, last=10_000), 4)) == []
    with pytest.raises(ValueError, match=r"moments too little was known, the first is row 0.*ask for fewer"):
        len(windows(tables, last=150, missing="raise"))
    rows = next(iter(torch.utils.data.DataLoader(some, 5, collate_fn=list)))
    assert [row["label"] for row in rows] == next(iter(DataLoader(some, 5)))["label"].tolist()
    assert some[-1]["trade.price"].shape == (150,)
    with pytest.raises(IndexError, match="there are"):
        some[len(some)]


def test_what_does_not_fit_is_named(tables: dict[str, Dataset]) -> None:
    moments, trades = tables["moments"], tables["trades"]

    def one(track: Known, **options: Any) -> Callable[[], Any]:
        return lambda: len(AsOf(moments, "t", {"x": track}, **options))

    refused: list[tuple[Callable[[], Any], str]] = [
        (one(Known(trades, "t", "knwn", 2)), "rows of track 'x' have no column 'knwn'"),
        (one(Known(trades, "t", "known", 2, ("key",))), "no column 'key'"),
        (one(Known(trades, "t", "known", 0)), "last=0"),
        (one(Known(trades, "t", "known", 2, reach=-1)), "reach=-1"),
        (one(Known(trades, "t", "known", 2, withdrawn="price")), "'price' is no column of bools"),
        (
            one(Known(trades, "t", "price", 2)),
            "column 'price' of track 'x' are floats and those of the moments integers",
        ),
        (one(Known(trades, "t", "known", 2), group="instrument"), "the moments have no column 'instrument'"),
        (one(Known(trades, "t", "known", 2), missing="keep"), "missing='keep'"),
        (lambda: split_in_time(np.array([3]), np.array([2]), 5), "settled before its moment"),
        (lambda: DataLoader(windows(tables), 4, columns=["trade.x"]), "no column 'trade.x'"),
    ]
    for make, message in refused:
        with pytest.raises(ValueError, match=message):
            make()
