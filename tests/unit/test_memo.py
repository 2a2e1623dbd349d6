"""The memo: what was put is found, by any process, or is absent; never something else."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.digest import digest_of
from leptonstore.errors import FormatDamaged
from leptonstore.process.memo import Memo
from leptonstore.process.memo_block import Block
from leptonstore.process.outcomes import Outcomes, Part, assembled
from leptonstore.store import Store
from leptonstore.store.keys import Passphrase, ScryptCost

ROWS = limits.ROW_GROUP_ROWS_MAX
TYPES = (pa.fixed_shape_tensor(pa.uint8(), [2, 3]), pa.string(), pa.list_(pa.int32()), pa.bool_(), pa.float32())


def keys_of(*numbers: int) -> list[bytes]:
    return [digest_of(number.to_bytes(8, "little")) for number in numbers]


def outcomes_of(numbers: list[int]) -> Outcomes:
    """Something of each type; row k is left out when k % 5 == 4, has failed when k % 7 == 6."""
    fates = np.array([1 if k % 5 == 4 else -2 if k % 7 == 6 else 0 for k in numbers], np.int16)
    kept = [k for k, fate in zip(numbers, fates.tolist(), strict=True) if fate == 0]
    pixels = np.arange(6, dtype=np.uint8).reshape(1, 2, 3) + np.array(kept, np.uint8)[:, None, None]
    storage = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1), pa.uint8()), 6)
    columns = (
        pa.ExtensionArray.from_storage(TYPES[0], storage),
        pa.array([None if k % 3 == 0 else f"text {k}" for k in kept], pa.string()),
        pa.array([list(range(k % 4)) for k in kept], pa.list_(pa.int32())),
        pa.array([k % 2 == 0 for k in kept], pa.bool_()),
        pa.array([k / 2 for k in kept], pa.float32()),
    )
    return Outcomes(fates, pa.array([f"[{k}]" if k % 5 == 4 else None for k in numbers], pa.string()), columns)


def same(one: Outcomes, other: Outcomes) -> bool:
    pairs = zip((one.said, *one.columns), (other.said, *other.columns), strict=True)
    return bool((one.fates == other.fates).all()) and all(a.equals(b) for a, b in pairs)


@pytest.fixture
def memo(store: Store) -> Memo:
    made = Memo.of(store)
    assert made is not None
    return made


def gathered(memo: Memo, numbers: list[int]) -> Outcomes:
    """The outcomes of these rows, put together from all blocks that have some; every one must be there."""
    keys, parts = keys_of(*numbers), []
    found = memo.places(keys)
    assert found.found.all()
    for block in set(found.blocks.tolist()):
        to = np.flatnonzero([one == block for one in found.blocks.tolist()])
        rows = found.rows[to]
        held = memo.outcomes(block, [keys[at] for at in to], rows.tolist(), TYPES)
        assert held is not None
        parts.append(Part(held, rows, to))
    return assembled(parts, len(numbers), TYPES, lambda column, rows: pytest.fail("every part has every column"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True), min_size=1, max_size=4), st.data())
def test_rows_of_many_blocks_come_back_as_they_were_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[int]], data: st.DataObject
) -> None:
    memo = Memo(tmp_path_factory.mktemp("memo") / "memo")
    for numbers in blocks:
        memo.put_rows(keys_of(*numbers), outcomes_of(numbers))
    known = sorted({number for numbers in blocks for number in numbers})
    asked = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=40))
    assert same(gathered(memo, asked), outcomes_of(asked))


def test_keys_that_were_never_put_are_absent(memo: Memo) -> None:
    memo.put_rows(keys_of(1), outcomes_of([1]))
    assert memo.places(keys_of(1, 2)).found.tolist() == [True, False]


def test_a_block_that_is_altered_anywhere_is_refused(memo: Memo, tmp_path: Path) -> None:
    numbers = list(range(20))
    memo.put_rows(keys_of(*numbers), outcomes_of(numbers))
    (file,) = (memo.path / "blocks").iterdir()
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    cases = [whole[:at] for at in (0, 3, 40, len(whole) // 2, len(whole) - 1)] + [whole + b"more"]
    for at in sorted({*range(24), *rng.integers(0, len(whole), 300).tolist()}):
        cases.append(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    refused = 0
    for case in cases:
        altered = tmp_path / "altered"
        altered.write_bytes(case)
        try:
            block = Block(altered)
            assert block.row_keys().tobytes() == b"".join(keys_of(*numbers))
            assert same(block.outcomes(TYPES), outcomes_of(numbers))  # what stands between sections is read by nobody
        except (FormatDamaged, ValueError):
            refused += 1
    assert refused > len(cases) // 2


def test_a_damaged_block_is_absent_and_forgotten(memo: Memo) -> None:
    memo.put_rows(keys_of(1), outcomes_of([1]))
    (file,) = (memo.path / "blocks").iterdir()
    (block,) = memo.places(keys_of(1)).blocks.tolist()
    raw = bytearray(file.read_bytes())
    raw[-70] ^= 1
    file.write_bytes(raw)
    fresh = Memo(memo.path)
    assert fresh.outcomes(block, keys_of(1), [0], TYPES) is None
    assert fresh.usage()[2:4] in ((0, 0), (0, 1))
    assert not list((memo.path / "blocks").iterdir())
    fresh.put_rows(keys_of(1), outcomes_of([1]))
    assert same(gathered(fresh, [1]), outcomes_of([1]))


def test_columns_of_another_type_are_absent(memo: Memo) -> None:
    memo.put_rows(keys_of(1), outcomes_of([1]))
    (block,) = memo.places(keys_of(1)).blocks.tolist()
    assert memo.outcomes(block, keys_of(1), [0], TYPES[:2]) is None


def test_it_stays_within_its_budget_and_keeps_what_was_used(memo: Memo) -> None:
    def block(number: int) -> None:
        outcomes = Outcomes(np.zeros(ROWS, np.int16), pa.nulls(ROWS, pa.string()), (pa.array(np.full(ROWS, number)),))
        memo.put_rows(keys_of(*range(number * ROWS, (number + 1) * ROWS)), outcomes)

    memo.set_budget(12 * ROWS * (limits.MEMO_ROW_BYTES + 64))
    for number in range(40):
        block(number)
        first = memo.places(keys_of(0)).blocks.tolist()
        assert first, "what is used all the time stays"
        assert memo.outcomes(first[0], keys_of(0), [0], (pa.int64(),)) is not None
        usage = memo.usage()
        assert usage.bytes <= usage.budget_bytes
    usage = memo.usage()
    assert 4 <= usage.blocks < 40
    assert usage.rows == usage.blocks * ROWS
    assert usage.blocks == len(list((memo.path / "blocks").iterdir()))
    memo.set_budget(0)
    assert memo.usage()[:1] + memo.usage()[2:4] == (0, 0, 0)
    block(1)
    assert memo.usage().blocks == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.binary(max_size=300)), max_size=30))
def test_small_values_are_what_was_put_last_or_absent(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bytes]]
) -> None:
    memo = Memo(tmp_path_factory.mktemp("memo") / "memo")
    model: dict[bytes, bytes] = {}
    for number, value in steps:
        (key,) = keys_of(number)
        memo.put(key, value)
        model[key] = value
        assert {key: memo.get(key) for key in model} == model
    assert memo.get(keys_of(99)[0]) is None


def test_small_values_are_bounded_and_what_is_asked_for_stays(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMO_VALUES_BYTES_MAX", 64 * 1024)
    memo.set_budget(2**20)
    wanted = keys_of(0)[0]
    memo.put(wanted, b"wanted")
    for number in range(1, 400):
        memo.put(keys_of(number)[0], bytes(1000))
        assert memo.get(wanted) == b"wanted"
    assert memo.usage().values < 70
    memo.put(keys_of(1000)[0], bytes(limits.MEMO_VALUE_BYTES_MAX + 1))
    assert memo.get(keys_of(1000)[0]) is None


def test_a_damaged_index_starts_from_empty(memo: Memo) -> None:
    memo.put_rows(keys_of(1), outcomes_of([1]))
    data = memo.path / "index" / "data.mdb"
    raw = data.read_bytes()
    data.unlink()
    data.write_bytes(b"\xff" * len(raw))
    fresh = Memo(memo.path)
    assert not fresh.places(keys_of(1)).found.any()
    fresh.put_rows(keys_of(1), outcomes_of([1]))
    assert fresh.places(keys_of(1)).found.all()
    assert len(list((memo.path / "blocks").iterdir())) == 1


@pytest.mark.parametrize("keep", [0.1, 0.34, 0.7], ids=str)
@pytest.mark.parametrize("rest", [b"", b"\xa5"], ids=["cut short", "overwritten"])
def test_an_index_that_ends_early_is_no_end_of_the_process_and_keeps_its_budget(
    memo: Memo, keep: float, rest: bytes
) -> None:
    """A page beyond the end of a mapped file is SIGBUS; one that cannot be read makes a transaction bad, which was taken for no damage."""
    memo.set_budget(77 << 20)
    memo.put_rows(keys_of(*range(200)), outcomes_of(list(range(200))))
    data = memo.path / "index" / "data.mdb"
    whole = data.read_bytes()
    start = int(len(whole) * keep)
    code = (
        "import sys; from pathlib import Path; from leptonstore.process.memo import Memo\n"
        "memo = Memo(Path(sys.argv[1])); memo.get(bytes(32)); memo.put(bytes(32), b'small')\n"
        "print(memo.get(bytes(32)), memo.usage().budget_bytes)"
    )
    data.unlink()
    data.write_bytes(whole[:start] + rest * (len(whole) - start))
    done = subprocess.run([sys.executable, "-c", code, str(memo.path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"b'small' {77 << 20}\n"), done.stderr


def test_a_budget_of_nothing_stays_when_it_is_emptied(memo: Memo) -> None:
    memo.set_budget(0)
    memo.clear()
    memo.put_rows(keys_of(1), outcomes_of([1]))
    assert memo.usage().budget_bytes == 0 and memo.usage().rows == 0


@pytest.mark.parametrize("name", [b"bytes", b"clock", b"young", b"young bytes", b"budget"])
@pytest.mark.parametrize("value", [b"short", b"\xff" * 8], ids=["short", "huge"])
def test_a_damaged_number_of_the_index_is_no_error(memo: Memo, name: bytes, value: bytes) -> None:
    numbers = list(range(20))
    memo.put_rows(keys_of(*numbers), outcomes_of(numbers))
    places = memo._open()
    places.write(lambda txn: txn.put(name, value, db=places.meta))
    key = keys_of(99)[0]
    for _ in range(2):
        memo.put_rows(keys_of(*numbers), outcomes_of(numbers))
        memo.put(key, b"small")
        memo.flush()
        memo.usage()
        assert memo.get(key) in (b"small", None)
    memo.clear()
    memo.put(key, b"small")
    assert memo.get(key) == b"small"


def test_a_forked_child_finds_what_its_parent_put(memo: Memo) -> None:
    memo.put_rows(keys_of(1, 2), outcomes_of([1, 2]))
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            memo.put(keys_of(3)[0], b"of the child")
            code = 0 if same(gathered(memo, [2, 1]), outcomes_of([2, 1])) else 2
        os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert memo.get(keys_of(3)[0]) == b"of the child"


_WRITER = """
import sys
from pathlib import Path
import numpy as np, pyarrow as pa
from leptonstore.digest import digest_of
from leptonstore.process.memo import Memo
from leptonstore.process.outcomes import Outcomes
memo = Memo(Path(sys.argv[1]))
for number in range(100_000):
    keys = [digest_of(f"{sys.argv[2]} {number} {row}".encode()) for row in range(64)]
    memo.put_rows(keys, Outcomes(np.zeros(64, np.int16), pa.nulls(64, pa.string()), (pa.array(np.full(64, number)),)))
    print(number, flush=True)
"""


def test_writers_that_are_killed_leave_a_sound_memo(tmp_path: Path) -> None:
    path = tmp_path / "memo"
    acknowledged = []
    for turn in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(turn)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(3 + turn):
            acknowledged.append((turn, int(writer.stdout.readline())))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    memo = Memo(path)
    for turn, number in acknowledged:
        keys = [digest_of(f"{turn} {number} {row}".encode()) for row in range(64)]
        (block,) = set(memo.places(keys).blocks.tolist())
        held = memo.outcomes(block, keys, range(64), (pa.int64(),))
        assert held is not None
        assert held.columns == (pa.array([number] * 64),)
    (memo.path / "blocks" / ("ab" * 8)).write_bytes(b"of a writer that was killed")
    memo.trim(1 << 40)
    assert len(list((memo.path / "blocks").iterdir())) == memo.usage().blocks


def test_clear_empties_it_and_keeps_its_budget(store: Store, memo: Memo) -> None:
    memo.set_budget(1 << 30)
    memo.put_rows(keys_of(1), outcomes_of([1]))
    memo.put(keys_of(2)[0], b"small")
    assert memo.clear() > 0
    assert not memo.places(keys_of(1)).found.any() and memo.get(keys_of(2)[0]) is None
    assert memo.usage()[1:] == (1 << 30, 0, 0, 0)
    assert not list((memo.path / "blocks").iterdir())


def test_an_encrypted_store_has_one_in_ram_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = ScryptCost(1 << 10, 8, 1)
    monkeypatch.setattr("leptonstore.cache.directory.filesystem_of", lambda path: "ext4")
    with Store.create(tmp_path / "sealed", unlock=Passphrase(b"secret"), cost=cost) as sealed:
        assert Memo.of(sealed) is None
        monkeypatch.setattr("leptonstore.cache.directory.filesystem_of", lambda path: "tmpfs")
        assert Memo.of(sealed) is not None
