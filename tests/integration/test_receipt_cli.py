"""lepton receipt: what a run saw is shown, checked and given again from the store alone; what is wrong is one line and an exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from loader_data import make_table

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.store import Store

pytest.importorskip("torch")

from click.testing import CliRunner

from leptonstore.cli.group import lepton
from leptonstore.cli.runtime import run as run_group
from loaders import DataLoader, Order
from loaders.commands import receipt as group

ROWS = 1_203
Make = Callable[..., Source]


@pytest.fixture
def place(tmp_path: Path, source_of: Make) -> Path:
    """A store with a version of `samples`, another one on top, and the receipt of a run over the first."""
    with Store.create(tmp_path / "store") as store:
        ds = write_dataset(store, "samples", source_of(make_table(ROWS), ("id",)))
        loader = DataLoader(ds, 64, shuffle=True, seed=3, columns=["id"])
        list(loader), list(loader)
        loader.receipt().save(tmp_path / "run.json")
        ds.append(make_table(ROWS + 1).slice(ROWS))
    return tmp_path


def lepton_receipt(place: Path, *arguments: str, capsys: Any, code: int = 0) -> str:
    """What the command prints (on stderr, when it fails)."""
    where = [] if arguments[0] == "show" else ["--store", str(place / "store")]
    found = run_group(lepton, ["receipt", arguments[0], *where, *arguments[1:]])
    told = capsys.readouterr()
    assert found == code, told
    return str(told.err if code else told.out)


def test_show_says_what_it_is_of(place: Path, capsys: Any) -> None:
    text = lepton_receipt(place, "show", str(place / "run.json"), capsys=capsys)
    assert "38 steps" in text and "1,203 rows, seed 3, order shuffle" in text and "epoch 1, steps 0-18" in text
    told = json.loads(lepton_receipt(place, "show", str(place / "run.json"), "--json", capsys=capsys))
    assert told == json.loads((place / "run.json").read_text())


def test_verify_computes_it_again(place: Path, capsys: Any) -> None:
    text = lepton_receipt(place, "verify", str(place / "run.json"), capsys=capsys)
    assert text.startswith("OK: 38 steps, 2,406 rows, head ")
    head = text.split()[-1]
    lepton_receipt(place, "verify", str(place / "run.json"), "--head", head[:12].upper(), capsys=capsys)
    for other in ("0" * 64, head[:7]):
        message = lepton_receipt(place, "verify", str(place / "run.json"), "--head", other, capsys=capsys, code=2)
        assert f"ends with head {head}, not {other}" in message
    told = json.loads(lepton_receipt(place, "verify", str(place / "run.json"), "--data", "--json", capsys=capsys))
    assert (told["ok"], told["steps"], told["read_rows"]) == (True, 38, ROWS)


def test_replay_gives_the_batch_again(place: Path, capsys: Any) -> None:
    step = ["replay", str(place / "run.json"), "--epoch", "1", "--step", "18"]
    expected = Order(ROWS, 3, 1).rows_at(18 * 64, ROWS).tolist()
    assert lepton_receipt(place, *step, capsys=capsys).split() == list(map(str, expected))
    told = json.loads(
        lepton_receipt(place, *step, "--values", "--column", "id", "--column", "blob", "--json", capsys=capsys)
    )
    assert told["rows"] == expected and [row["id"] for row in told["values"]] == expected
    assert bytes.fromhex(told["values"][0]["blob"]) == b"%d" % expected[0] * 30
    lepton_receipt(place, *step, "--out", str(place / "batch.parquet"), capsys=capsys)
    table = pq.read_table(place / "batch.parquet")
    assert table["id"].to_pylist() == expected and table.num_columns == len(make_table(1).column_names)
    text = lepton_receipt(place, *step, "--values", "--column", "text", capsys=capsys)
    assert text.splitlines()[0] == "text" and len(text.splitlines()) == 2 + len(expected)


def test_a_view_is_named_again(place: Path, capsys: Any, source_of: Make) -> None:
    with Store.open(place / "store") as store:
        view = Dataset.open(store, "samples").filter("label = 3")
        loader = DataLoader(view, 16, shuffle=True, columns=["id"])
        list(loader)
        loader.receipt().save(place / "view.json")
    path = str(place / "view.json")
    lepton_receipt(place, "verify", path, "--where", "label = 3", capsys=capsys)
    for options in ([], ["--where", "label = 4"]):
        text = lepton_receipt(place, "verify", path, *options, capsys=capsys, code=2)
        assert "take the same rows of it (--split, --where)" in text
    rows = lepton_receipt(
        place, "replay", path, "--where", "label = 3", "--epoch", "0", "--step", "0", "--values", "--column", "label",
        "--json", capsys=capsys,
    )  # fmt: skip
    assert {row["label"] for row in json.loads(rows)["values"]} == {3}


def test_receipts_of_one_run_are_read_one_after_another(place: Path, capsys: Any) -> None:
    with Store.open(place / "store") as store:
        ds = Dataset.open(store, "samples~1")
        first = DataLoader(ds, 64, shuffle=True, seed=3, columns=["id"])
        for _, _batch in zip(range(5), first, strict=False):
            pass
        first.receipt().save(place / "first.json")
        second = DataLoader(ds, 64, shuffle=True, seed=3, columns=["id"])
        second.load_state_dict(first.state_dict())
        list(second), list(second)
        second.receipt().save(place / "second.json")
    one, two = str(place / "first.json"), str(place / "second.json")
    together = json.loads(lepton_receipt(place, "verify", one, two, "--json", capsys=capsys))
    whole = json.loads(lepton_receipt(place, "verify", str(place / "run.json"), "--json", capsys=capsys))
    assert together == whole
    alone = lepton_receipt(place, "verify", two, capsys=capsys)
    assert "(after step 5, which this receipt does not reach back to)" in alone
    assert "ends at step 38" in lepton_receipt(place, "verify", two, one, capsys=capsys, code=2)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda told: told.update(version=2), 7, "has version 2 and this code reads version 1"),
        (lambda told: told.update(format="x"), 2, "no receipt of a loader"),
        (lambda told: told.update(head="0" * 64), 4, "the receipt is damaged: its head"),
        (lambda told: told["segments"][1].update(epoch=2), 4, "segment 1, epoch 2, step 0: other rows"),
        (lambda told: told["origins"][0].update(seed=4), 4, "segment 0, epoch 0, step 0: other rows"),
        (lambda told: told["segments"][0]["marks"].__setitem__(-1, [18, "0" * 16]), 4, "epoch 0, step 17: other rows"),
        (lambda told: told["segments"][0].update(length=1_204), 4, "1,203 positions and not 1,204"),
        (lambda told: told["segments"][0].update(length=1_202), 4, "'stop' is 1203"),
        (lambda told: told["origins"][0].update(rows=1_204), 2, "1,204 rows of dataset 'samples'"),
        (lambda told: told["origins"][0].update(commit="ab" * 32, fingerprint="ab" * 32), 3, "is not in this store"),
        (lambda told: told["origins"][0].update(dataset="others"), 3, "is not in this store"),
        (lambda told: told["origins"][0]["order"].update(version=9), 2, "an order cannot be made of"),
        (lambda told: told["origins"][0]["order"].update(name="weighted"), 2, "an order cannot be made of"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(
    place: Path, capsys: Any, change: Callable[[Any], None], code: int, message: str
) -> None:
    told = json.loads((place / "run.json").read_text())
    change(told)
    (place / "run.json").write_text(json.dumps(told))
    text = lepton_receipt(place, "verify", str(place / "run.json"), capsys=capsys, code=code)
    assert message in text and len(text.strip().splitlines()) == 1, text


def test_mistakes_of_the_caller(place: Path, capsys: Any) -> None:
    path = str(place / "run.json")
    for arguments, code, message in [
        (["verify", str(place / "nowhere")], 2, "cannot read the receipt"),
        (["replay", path, "--epoch", "0", "--step", "19"], 2, "step 19 of epoch 0 is not in the receipt"),
        (["replay", path, "--epoch", "5", "--step", "0"], 2, "epoch 5 is not in the receipt, which has epochs 0-1"),
        (["replay", path, "--epoch", "0", "--step", "0", "--out", "x.csv"], 2, "--out writes Parquet"),
        (["replay", path, "--epoch", "0", "--step", "0", "--values", "--column", "nope"], 2, "has no column 'nope'"),
    ]:
        assert message in lepton_receipt(place, *arguments, capsys=capsys, code=code)
    (place / "run.json").write_bytes((place / "run.json").read_bytes()[:-40])
    assert "cut short?" in lepton_receipt(place, "verify", path, capsys=capsys, code=4)


def test_bytes_that_were_damaged_since_are_found_by_reading_them(place: Path, capsys: Any) -> None:
    pack = max((place / "store" / "packs").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    for at in range(len(data) // 4, 3 * len(data) // 4, 512):
        data[at] ^= 1
    pack.write_bytes(data)
    text = lepton_receipt(place, "verify", str(place / "run.json"), "--data", capsys=capsys, code=4)
    assert "samples" in text and "is corrupt" in text


def test_every_command_has_an_example() -> None:
    for command in (group, *group.commands.values()):
        assert "Example:" in (command.help or "")
    assert CliRunner().invoke(lepton, ["doctor", "--help"]).output.count("loader")
