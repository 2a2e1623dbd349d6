"""Checks of the JAX loader that need a process of their own: eight devices, or two processes of four. Run by test_jax_loader.py.

python jax_run.py STORE OUT                       every `check_…` here, in one process
python jax_run.py STORE OUT PROCESS ADDRESS       every `together_…`, as one of two processes; ADDRESS is the coordinator's

Writes JSON to OUT: {check: "" or the traceback}. Pytest's own process never imports JAX, which does not like to be forked.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from leptonstore.dataset import Dataset
from loaders import NumpyLoader, Order
from loaders.jax import JaxLoader

ROWS = 203
SEED = 3


def mesh(*axes: tuple[str, int]) -> Any:
    """A mesh over all devices."""
    names, sizes = zip(*axes, strict=True)
    return jax.make_mesh(sizes, names, (AxisType.Auto,) * len(names))


def order(epoch: int = 0) -> list[int]:
    return Order(ROWS, SEED, epoch).rows_at(0, ROWS).tolist()


def loader(ds: Any, **options: Any) -> JaxLoader:
    return JaxLoader(ds, **{"shuffle": True, "seed": SEED, "columns": ["id", "tokens"], **options})


def valid_ids(batch: Any) -> list[int]:
    """The real rows of a global batch, in order; the same on every process."""
    whole = {name: multihost_utils.process_allgather(batch[name], tiled=True) for name in ("id", "tokens", "_valid")}
    assert (whole["tokens"] == whole["id"][:, None] * 100 + np.arange(4)).all()
    return whole["id"][whole["_valid"]].tolist()


def refused(ds: Any, **options: Any) -> str:
    """What the ValueError says."""
    try:
        next(iter(loader(ds, **options)))
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")


# -- one process, eight devices --------------------------------------------------------------------------------------


def check_rows_are_sharded_over_all_devices(ds: Any) -> None:
    assert jax.device_count() == 8
    for size in (32, 20, 3):  # 20 and 3 do not divide
        each = -(-size // 8)
        seen = []
        for epoch in range(2):
            made = loader(ds, global_batch_size=size)
            made.set_epoch(epoch)
            batches = list(made)
            assert len(batches) == len(made) == -(-ROWS // size)
            for batch in batches:
                assert batch["tokens"].shape == (8 * each, 4) and batch["_valid"].dtype == np.bool_
                assert batch["id"].sharding.spec == PartitionSpec(("data",))
                assert [shard.data.shape for shard in batch["tokens"].addressable_shards] == [(each, 4)] * 8
            seen.append([valid_ids(batch) for batch in batches])
        for epoch, batches in enumerate(seen):
            assert batches == [order(epoch)[at : at + size] for at in range(0, ROWS, size)]


def check_one_compilation_serves_the_epoch(ds: Any) -> None:
    traced = []

    @jax.jit
    def total(batch: Any) -> Any:
        traced.append(1)
        return (batch["id"] * batch["_valid"]).sum(), batch["_valid"].sum()

    sums = [total(batch) for batch in loader(ds, global_batch_size=24)]
    assert len(traced) == 1
    assert sum(int(ids) for ids, _ in sums) == sum(range(ROWS)) and sum(int(count) for _, count in sums) == ROWS


def check_model_axes_get_equal_data(ds: Any) -> None:
    for axes in ((("data", 4), ("model", 2)), (("tensor", 2), ("fsdp", 4))):
        for batch in loader(ds, global_batch_size=20, mesh=mesh(*axes)):
            assert batch["id"].shape == (20,)
            parts: dict[Any, set[tuple[int, ...]]] = {}
            for shard in batch["id"].addressable_shards:
                parts.setdefault(shard.index[0].start or 0, set()).add(tuple(np.asarray(shard.data).tolist()))
            assert len(parts) == 4 and all(len(copies) == 1 for copies in parts.values())
    hybrid = mesh(("replica", 2), ("fsdp", 2), ("tensor", 2))
    batches = list(loader(ds, global_batch_size=10, mesh=hybrid))
    assert batches[0]["id"].sharding.spec == PartitionSpec(("replica", "fsdp"))
    assert [valid_ids(batch) for batch in batches] == [order()[at : at + 10] for at in range(0, ROWS, 10)]
    whole = next(iter(loader(ds, global_batch_size=7, mesh=hybrid, data_axes=())))
    assert whole["id"].is_fully_replicated and valid_ids(whole) == order()[:7]


def check_a_sequence_axis_shards_its_columns(ds: Any) -> None:
    where = mesh(("data", 2), ("seq", 4))
    batch = next(iter(loader(ds, global_batch_size=6, mesh=where, specs={"tokens": PartitionSpec("data", "seq")})))
    assert {shard.data.shape for shard in batch["tokens"].addressable_shards} == {(3, 1)}
    assert {shard.data.shape for shard in batch["id"].addressable_shards} == {(3,)}
    assert valid_ids(batch) == order()[:6]
    assert "its first entry must be the data axes" in refused(ds, mesh=where, specs={"tokens": PartitionSpec("seq")})


def check_a_state_goes_on_here_and_elsewhere(ds: Any) -> None:
    first = loader(ds, global_batch_size=30, device_prefetch=3)
    seen = [row for batch in islice(first, 2) for row in valid_ids(batch)]
    state = json.loads(json.dumps(first.state_dict()))
    assert state["consumed"] == 60  # what was copied ahead is not consumed
    second = loader(ds, global_batch_size=50)
    second.load_state_dict(state)
    seen += [row for batch in islice(second, 1) for row in valid_ids(batch)]
    third = NumpyLoader(ds, global_batch_size=9, shuffle=True, seed=SEED, columns=["id"])
    third.load_state_dict(json.loads(json.dumps(second.state_dict())))
    seen += [row for batch in third for row in batch["id"].tolist()]
    assert seen == order()


def check_full_batches_need_no_mask(ds: Any) -> None:
    batches = list(loader(ds, global_batch_size=16, pad=False, drop_last=True))
    assert len(batches) == ROWS // 16 and "_valid" not in batches[0]
    assert "8 devices share equally, and not 16 rows with drop_last=False" in refused(
        ds, global_batch_size=16, pad=False
    )
    assert "and not 20 rows" in refused(ds, global_batch_size=20, pad=False, drop_last=True)


def check_what_has_no_array_is_named(ds: Any) -> None:
    assert "JAX has no arrays for text" in refused(ds, columns=["id", "text"])
    assert "column 'text' is a str" in refused(ds, columns=["id", "text"], transform=lambda batch: batch)
    assert "column 'id' has shape (3,)" in refused(ds, batch_size=8, transform=lambda batch: {"id": batch["id"][:3]})
    assert "no column 'nope'" in refused(ds, columns=["nope"])
    assert "leaves out '_valid'" in refused(ds, columns=None, as_tuple=("id",))
    assert "dimension 'x'" in refused(ds, mesh=mesh(("x", 8)))
    lengths = loader(
        ds, columns=["text"], transform=lambda batch: {"n": np.array([len(text) for text in batch["text"]])}
    )
    assert next(iter(lengths))["n"].shape == (8,)


def check_integers_are_never_cut(ds: Any) -> None:
    assert "column 'big' has a value of 1099511627" in refused(ds, batch_size=ROWS, columns=["big"])
    with jax.enable_x64(True):
        batch = next(iter(loader(ds, batch_size=ROWS, columns=["big"])))
        assert batch["big"].dtype == np.int64 and int(batch["big"].max()) >= 1 << 40
    for name, dtype in (("id", np.int32), ("half", np.float16), ("wide", np.float32)):
        assert next(iter(loader(ds, columns=[name])))[name].dtype == dtype


def check_tuples_and_threads(ds: Any) -> None:
    options: dict[str, Any] = {"arena_bytes_max": 0, "num_workers": 2, "global_batch_size": 24}
    made = loader(ds, columns=None, as_tuple=("id", "_valid"), **options)
    assert [np.asarray(ids)[np.asarray(valid)].tolist() for ids, valid in made] == [
        order()[at : at + 24] for at in range(0, ROWS, 24)
    ]


# -- two processes, four devices each --------------------------------------------------------------------------------


def together_processes_share_global_batches(ds: Any) -> None:
    assert (jax.process_count(), jax.device_count(), jax.local_device_count()) == (2, 8, 4)
    for size in (32, 21, 5):
        made = loader(ds, global_batch_size=size)
        batches = [valid_ids(batch) for batch in made]
        assert batches == [order()[at : at + size] for at in range(0, ROWS, size)]
        rows = multihost_utils.process_allgather(np.array(made.stats["rows"]))
        assert rows.sum() == ROWS and rows.min() > 0


def together_a_model_axis_across_processes_gets_equal_data(ds: Any) -> None:
    made = loader(ds, global_batch_size=10, mesh=mesh(("model", 4), ("data", 2)))  # both processes hold all rows
    assert [valid_ids(batch) for batch in made] == [order()[at : at + 10] for at in range(0, ROWS, 10)]
    assert made.stats["rows"] == ROWS
    made = loader(ds, global_batch_size=10, mesh=mesh(("data", 2), ("model", 4)))  # half each
    assert [valid_ids(batch) for batch in made] == [order()[at : at + 10] for at in range(0, ROWS, 10)]
    assert made.stats["rows"] < ROWS


def together_devices_need_not_lie_side_by_side(ds: Any) -> None:
    """Processes' devices by turns along the data axis: the same rows in each global batch, in another order within it."""
    by_turns = np.array(jax.devices()).reshape(2, 4).T.reshape(-1)
    where = jax.sharding.Mesh(by_turns, ("data",))
    batches = [valid_ids(batch) for batch in loader(ds, global_batch_size=21, mesh=where)]
    assert [sorted(batch) for batch in batches] == [sorted(order()[at : at + 21]) for at in range(0, ROWS, 21)]


def together_computing_on_a_batch(ds: Any) -> None:
    where = mesh(("data", 8))
    step = jax.jit(
        lambda batch: (batch["id"] * batch["_valid"]).sum(), out_shardings=NamedSharding(where, PartitionSpec())
    )
    assert sum(int(step(batch)) for batch in loader(ds, global_batch_size=21, mesh=where)) == sum(range(ROWS))


def together_states_are_equal_and_go_on(ds: Any) -> None:
    first = loader(ds, global_batch_size=40)
    seen = [row for batch in islice(first, 2) for row in valid_ids(batch)]
    state = first.state_dict()
    texts = multihost_utils.process_allgather(np.frombuffer(json.dumps(state).encode(), np.uint8))
    assert (texts[0] == texts[1]).all()
    alone = NumpyLoader(ds, 10, shuffle=True, seed=SEED, columns=["id"], rank=0, world_size=1)
    alone.load_state_dict(state)
    assert seen + [row for batch in alone for row in batch["id"].tolist()] == order()


def main(store: str, out: str, process: str = "", address: str = "") -> None:
    if process:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, 2, int(process))
    wanted = "together_" if process else "check_"
    checks: dict[str, Callable[[Any], None]] = {name: f for name, f in globals().items() if name.startswith(wanted)}
    found = {}
    ds = Dataset.open(store, "sequences")
    for name, check in checks.items():
        try:
            check(ds)
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
            if process:
                break  # the other process would wait for this one
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
