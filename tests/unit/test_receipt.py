"""The document of a receipt: complete, small, and refused in one line when it is damaged, newer or another's."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leptonstore.errors import BadInput, FormatDamaged, FormatTooNew, SourceError
from loaders.chain import EMPTY
from loaders.receipt import MARKS_MAX, Note, Origin, Receipt, Segment, merged, thinned

ORIGIN = Origin("mnist", "ab" * 32, "ab" * 32, 1_000, 7, {"name": "shuffle", "version": 1})
GROWN = replace(ORIGIN, commit="cd" * 32, fingerprint="cd" * 32, rows=1_100)
FIRST = Segment(ORIGIN, 0, 1_000, 0, 1_000, 64, 16, b"\1" * 32, ((8, "0123456789abcdef"),))
SECOND = Segment(GROWN, 1, 1_100, 0, 640, 64, 10, b"\2" * 32)
NOTE = Note(0, 77, 5, "image", "substitute:9", "ChunkCorrupt: chunk is corrupt")
RECEIPT = Receipt((FIRST, SECOND), skips=((1, 640, 704),), notes=(NOTE, Note(0, 99, 8, "", "skip", "gone")))


def test_a_receipt_survives_its_file(tmp_path: Path) -> None:
    RECEIPT.save(tmp_path / "r.json")
    assert Receipt.load(tmp_path / "r.json") == RECEIPT
    assert (RECEIPT.steps, RECEIPT.head) == (26, b"\2" * 32)
    assert [origin["rows"] for origin in RECEIPT.to_dict()["origins"]] == [1_000, 1_100]
    with pytest.raises(BadInput, match="exists: take another name"):
        RECEIPT.save(tmp_path / "r.json")
    replace(RECEIPT, notes=()).save(tmp_path / "r.json", replace=True)
    assert Receipt.load(tmp_path / "r.json").notes == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json"]


def test_an_epoch_takes_a_few_hundred_bytes() -> None:
    many = tuple(replace(FIRST, epoch=epoch) for epoch in range(1_000))
    assert len(Receipt(many).to_json()) < 300 * 1_000


def paths(told: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    return [(*path, key) for key, _ in items] + [inner for key, value in items for inner in paths(value, (*path, key))]


@pytest.mark.parametrize("path", [path for path in paths(RECEIPT.to_dict()) if "order" not in path[:-1]])
def test_every_missing_or_mistyped_field_is_found(path: tuple[Any, ...]) -> None:
    for change in ("drop", "type"):
        told = json.loads(json.dumps(RECEIPT.to_dict()))
        inner = told
        for key in path[:-1]:
            inner = inner[key]
        if change == "type":
            inner[path[-1]] = 1.5
        elif isinstance(inner, dict):
            del inner[path[-1]]
        else:
            continue
        with pytest.raises((FormatDamaged, BadInput, FormatTooNew)) as caught:
            Receipt.from_dict(told)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("steps",), 27, "26 steps together"),
        (("head",), "00" * 32, "its head is not that of its last segment"),
        (("head",), "00", "'head' is no 64 hex digits"),
        (("segments", 0, "stop"), 1_001, "'stop' is 1001"),
        (("segments", 0, "steps"), 17, "'steps' is 17"),
        (("segments", 0, "origin"), 2, "'origin' is 2"),
        (("segments", 0, "global_batch"), 0, "'global_batch' is 0"),
        (("segments", 0, "marks"), [[17, "0" * 16]], "out of range"),
        (("notes", 0, "action"), "hide", "action 'hide'"),
        (("skips", 0), [0, 5, 5], "out of range"),
        (("base", "steps"), -1, "'steps' is -1"),
    ],
)
def test_what_does_not_fit_together_is_named(path: tuple[Any, ...], value: Any, message: str) -> None:
    told = json.loads(json.dumps(RECEIPT.to_dict()))
    inner = told
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(FormatDamaged, match=message):
        Receipt.from_dict(told)


def test_files_that_are_no_receipts_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read the receipt .*nowhere\.json: No such file"):
        Receipt.load(tmp_path / "nowhere.json")
    path, whole = tmp_path / "r.json", RECEIPT.to_json().encode()
    for kept in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:kept])
        with pytest.raises(FormatDamaged, match=r"r\.json: the receipt is damaged: it is no JSON"):
            Receipt.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FormatDamaged):
        Receipt.load(path)
    path.write_text("[" * 100_000)
    with pytest.raises(FormatDamaged):
        Receipt.load(path)
    path.write_text('{"format": "torch"}')
    with pytest.raises(BadInput, match="no receipt of a loader: its format is 'torch'"):
        Receipt.load(path)
    path.write_text(json.dumps({**RECEIPT.to_dict(), "version": 2}))
    with pytest.raises(FormatTooNew, match="has version 2 and this code reads version 1"):
        Receipt.load(path)


def test_ranks_are_merged_by_their_notes() -> None:
    ranks = [replace(RECEIPT, notes=(note,), notes_left_out=1) for note in reversed(RECEIPT.notes)]
    together = merged([*ranks, replace(RECEIPT, notes=())])
    assert together == replace(RECEIPT, notes_left_out=2)
    with pytest.raises(BadInput, match="ranks 0 and 1 differ"):
        merged([RECEIPT, replace(RECEIPT, segments=(FIRST, replace(SECOND, head=b"\3" * 32)))])
    with pytest.raises(BadInput, match="ranks 0 and 1 differ"):
        merged([RECEIPT, Receipt((FIRST,))])


def test_a_continuation_joins_the_receipt_that_it_follows() -> None:
    earlier = Receipt((FIRST, SECOND), notes=(NOTE,))
    rest = replace(SECOND, start=640, stop=1_100, steps=8, head=b"\3" * 32)
    later = Receipt((rest,), earlier.head, earlier.steps)
    run = earlier.then(later)
    assert run.segments == (
        FIRST,
        replace(SECOND, stop=1_100, steps=18, head=b"\3" * 32, marks=((10, "02" * 8),)),
    )
    assert (run.head, run.steps, run.base_head, run.notes) == (b"\3" * 32, 34, EMPTY, (NOTE,))
    other = Receipt((replace(rest, global_batch=46, steps=10),), earlier.head, earlier.steps)
    assert [segment.global_batch for segment in earlier.then(other).segments] == [64, 64, 46]
    with pytest.raises(BadInput, match=r"follows step 26 .* and this one ends at step 16"):
        Receipt((FIRST,)).then(later)


def test_marks_are_bounded_and_spread() -> None:
    marks = [(step, f"{step:016x}") for step in range(1, 1_001)]
    kept = thinned(marks)
    assert MARKS_MAX // 2 <= len(kept) <= MARKS_MAX
    assert {later[0] - earlier[0] for earlier, later in itertools.pairwise(kept)} == {32}
