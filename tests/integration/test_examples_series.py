"""The examples of finance and driving go all the way on little data; and their checks fail when what they check is broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from leptonstore.dataset import Dataset, list_refs
from leptonstore.store import Store

torch = pytest.importorskip("torch")

from loaders import NumpyLoader  # noqa: E402
from trainers.examples import driving, finance  # noqa: E402
from trainers.examples.scenes import drive  # noqa: E402
from trainers.examples.ticks import Day, trading_days  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- finance -------------------------------------------------------------------------------------------------------------


def few_days() -> list[Day]:
    return list(trading_days(finance.INSTRUMENTS, 2, 200))


def test_the_sign_of_the_next_return_is_predicted_without_looking_ahead(tmp_path: Path) -> None:
    done = CliRunner().invoke(finance.main, ["--quick", "--store", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    assert "impossible" in done.output and "every row was known" in done.output
    with Store.open(tmp_path / "store") as store:
        days = [info.branch for info in list_refs(store, "dataset", "trades-quick") if info.tag]
        assert days == ["close-1", "close-2", "close-3"]
        assert len(Dataset.open(store, "trades-quick").history()) == 3
        found = finance.run(store, quick=True)  # again: nothing is appended twice
        assert len(Dataset.open(store, "trades-quick").history()) == 3
    scores = found["scores"]
    assert scores["baseline"] < scores["model"] <= found["ceiling"] < scores["leaking"]
    assert found["ahead"]["model"] == 0 < found["ahead"]["hindsight"] < found["ahead"]["leaking"]


def test_days_are_appended_as_they_became_known(store: Store) -> None:
    days = few_days()
    trades, _ = finance.append_days(store, days)
    table = trades.to_arrow()
    assert len(table) == sum(len(day.trades) for day in days)
    known, happened = table["known_ns"].to_numpy(), table["time_ns"].to_numpy()
    assert (known > happened).all() and len(
        np.unique(np.diff(np.sort(happened)))
    ) > 100  # irregular, and never before it happened
    first = Dataset.open(store, "trades@close-1").to_arrow()
    assert first["known_ns"].to_numpy().max() <= days[0].closes_ns
    # Corrections that came in at night, of trades of the day before, are in the next day's commit.
    assert ((happened < days[0].closes_ns) & (known > days[0].closes_ns)).sum() > 3
    corrected = table.filter(table["revision"].to_numpy() == 1)
    assert set(corrected["id"].to_pylist()) < set(table["id"].to_pylist()) and len(corrected) > 50


def test_a_pinned_version_gives_the_windows_of_its_day_whatever_was_corrected_later(store: Store) -> None:
    days = few_days()
    trades, quotes = finance.append_days(store, days)
    moments = finance.write_moments(store, quotes, days, "moments")
    found = finance.pinned_digests(store, moments, days[0], "")
    assert set(found) == {"trades@close-1", "trades@main"} and len(set(found.values())) == 1
    first = moments.filter(f"time_ns < {days[0].closes_ns}")
    before = Dataset.open(store, "trades@close-1"), Dataset.open(store, "quotes@close-1")

    def sizes(some: Any) -> np.ndarray:
        return np.concatenate([batch["trade.size"] for batch in NumpyLoader(some, 512, columns=["trade.size"])])

    # The same windows by the time of the event alone are others once corrections have come: the test can tell.
    naive_before = sizes(finance.windows(first, *before, known="time_ns"))
    naive_after = sizes(finance.windows(first, trades, quotes, known="time_ns"))
    assert naive_before.shape != naive_after.shape or (naive_before != naive_after).any()
    np.testing.assert_array_equal(sizes(finance.windows(first, *before)), sizes(finance.windows(first, trades, quotes)))


def test_labels_lie_after_their_moment(store: Store) -> None:
    days = few_days()
    _, quotes = finance.append_days(store, days)
    moments = finance.write_moments(store, quotes, days, "moments").to_arrow().to_pylist()
    table = quotes.to_arrow().to_pylist()
    for row in moments[::97]:
        inside = [
            q for q in table if q["instrument"] == row["instrument"] and row["time_ns"] < q["time_ns"] <= row["ends_ns"]
        ]
        inside.sort(key=lambda quote: quote["time_ns"])
        change = inside[-1]["bid"] + inside[-1]["ask"] - inside[0]["bid"] - inside[0]["ask"]
        assert (change > 0) == bool(row["label"]) and change != 0


def test_a_model_that_looks_ahead_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = finance.windows
    monkeypatch.setattr(finance, "windows", lambda *given, **_: honest(*given, moment="ends_ns"))
    with pytest.raises(click.ClickException, match="the model looks ahead"):
        finance.run(store, quick=True)


# -- driving -------------------------------------------------------------------------------------------------------------


def test_steering_is_predicted_from_sensors_that_were_put_in_step(tmp_path: Path) -> None:
    done = CliRunner().invoke(driving.main, ["--quick", "--store", str(tmp_path / "store")])
    assert done.exit_code == 0, done.output
    assert "frames lost" in done.output and "points on posts" in done.output
    with Store.open(tmp_path / "store") as store:
        names = {info.name for info in list_refs(store, "dataset")}
        assert names == {f"{name}-quick" for name in ("frames", "sweeps", "poses", "imu", "rig")}
        raw, timed = (Dataset.open(store, f"sweeps-quick@{ref}") for ref in ("raw", "timed"))
        assert [*raw.column_names, "time_ns"] == timed.column_names
        added = timed.stats().stored_bytes - raw.stats().stored_bytes
        assert added < 0.05 * raw.stats().stored_bytes  # no cloud was copied


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    drives = [drive(number, 3.0) for number in range(4)]
    with Store.create(tmp_path_factory.mktemp("drives") / "store") as store:
        raw = driving.write_drives(store, drives)
        offsets = {sensor: driving.clock_offsets(raw[sensor], raw["rig"], sensor) for sensor in driving.DATASETS}
        made = {sensor: driving.timed(raw[sensor], offsets[sensor], sensor) for sensor in driving.DATASETS}
        yield {"drives": drives, "offsets": offsets, "rig": raw["rig"], "sensors": made, "store": store}


def test_clocks_are_found_and_points_fall_on_what_they_come_from(data: dict[str, Any]) -> None:
    for one in data["drives"]:
        assert abs(data["offsets"]["lidar"][one.name] - one.lidar_ahead_ns) < 2_000_000
        assert abs(data["offsets"]["camera"][one.name]) < 2_000_000
    sensors = data["sensors"]
    good = driving.points_on_posts(sensors["camera"], driving.posed(sensors["lidar"], sensors["pose"]), sensors["pose"])
    late = {name: offset + 150 * driving.MS for name, offset in data["offsets"]["lidar"].items()}
    raw = Dataset.open(data["store"], "sweeps@raw")
    wrong = driving.posed(driving.timed(raw, late, "lidar", branch="late"), sensors["pose"])
    assert good > 0.8 and driving.points_on_posts(sensors["camera"], wrong, sensors["pose"]) < good - 0.2


def test_windows_stay_in_their_drive_and_go_on_where_they_stopped(data: dict[str, Any]) -> None:
    some = driving.windows(driving.aligned({**data["sensors"], "rig": data["rig"]}, "train"))
    assert some.dropped > 0  # of the frames that were lost at a stretch
    loader = driving.loader_of(some, data["rig"], shuffle=True)
    batches = list(loader)
    for batch in batches:
        times, width = batch["camera.time_ns"], driving.WINDOW
        assert ((times[:, 1:] - times[:, :-1]) < driving.GAP_MAX).all() and times.shape[1] == width
        assert all(len(set(drives)) == 1 and drives[0] != "drive-3" for drives in batch["camera.drive"])
        assert batch["camera.image"].shape[1:] == (width, driving.HEIGHT, driving.WIDTH, 3)
        values, mask = batch["lidar.points"]["values"], batch["lidar.points"]["mask"]
        assert values.shape[2] == 5 and len({int(row.sum()) for row in mask}) > 1 and not values[~mask].any()
    first = driving.loader_of(some, data["rig"], shuffle=True)
    next(iter(first))
    again = driving.loader_of(some, data["rig"], shuffle=True)
    again.load_state_dict(first.state_dict())
    for one, other in zip(again, batches[1:], strict=True):
        assert torch.equal(one["camera.image"], other["camera.image"])
        assert torch.equal(one["lidar.points"]["values"], other["lidar.points"]["values"])


def test_clocks_that_are_not_put_right_are_noticed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "clock_offsets", lambda messages, rig, sensor: {f"drive-{at}": 0 for at in range(4)})
    with pytest.raises(click.ClickException, match="camera and lidar do not fit"):
        driving.run(store, quick=True)
