"""Trainings with JAX that need processes of their own: eight devices, or two processes of four. Run by test_jax_training.py.

python jax_training_run.py STORE OUT STAGE                     in one process
python jax_training_run.py STORE OUT STAGE PROCESS ADDRESS     as one of two; ADDRESS is the coordinator's

Stage "first" trains runs to their end and others to a stop; "second", in new processes, goes on with those. Writes JSON to OUT.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput, LeptonError
from leptonstore.store import Store
from trainers.examples.jax_mnist import Config, Result, fit
from trainers.jax import Checkpointer, JaxRanks, load, restore_tree, state_of_tree

CONFIG = Config(
    epochs=3, global_batch_size=12, lr=3e-3, seed=5, width=8
)  # 12 rows over 8 devices: uneven shares; the last batch has 2
STOPS = (1, 5, 7)  # after the first step, at the end of an epoch, in mid-epoch
ROWS, COLUMNS = 16, 40_000  # of float32: cells of 1 MiB hold 6 rows, so a shard of columns holds part of each cell


def told(result: Result, store: Store, run: str) -> dict[str, Any]:
    """Losses as bits, and a digest of all that the last checkpoint holds."""
    store.refresh()
    saved, digest = load(store, run), hashlib.sha256()
    for path in saved.paths:
        digest.update(path.encode() + saved.bits(path).tobytes())
    return {
        "losses": [loss.hex() for loss in result.losses],
        "accuracy": result.accuracy,
        "digest": digest.hexdigest(),
        "commit": saved.commit,
        "loader": saved.manifest["loader"],
        "receipt": [saved.manifest["receipt"]["head"], saved.manifest["receipt"]["steps"]],
        "stretches": len(saved.manifest["provenance"]["stretches"]),
    }


def train(store: Store, ds: Dataset, run: str, **options: Any) -> dict[str, Any]:
    return told(fit(store, ds, CONFIG, run, checkpoint_every=4, **options), store, run)


def first(store: Store, ds: Dataset, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {"whole": train(store, ds, f"{kind}-whole")}
    for stop in STOPS:
        found[f"stop-{stop}"] = train(store, ds, f"{kind}-{stop}", max_steps=stop)
    before = store.new_bytes
    found["cells"] = save_sharded(store, f"{kind}-sharded")
    found["new_bytes"] = store.new_bytes - before
    if kind == "two":
        try:
            Checkpointer(store, "x", JaxRanks(), asynchronous=True)
        except BadInput as error:
            found["refused"] = str(error)
    return found


def second(store: Store, ds: Dataset, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stop in STOPS:
        found[f"stop-{stop}"] = train(store, ds, f"{kind}-{stop}", resume=True)
    for other in ("one", "two"):
        found[f"restored-{other}"] = restored(store, f"{other}-sharded")
    if kind == "one":
        found["elsewhere"] = train(store, ds, "two-twin", resume=True)
        found["refusals"] = refusals(store, ds)
        found["background"] = in_the_background(store)
    return found


# -- trees on meshes -------------------------------------------------------------------------------------------------------


def placed(spec: tuple[Any, ...], values: np.ndarray[Any, Any]) -> jax.Array:
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), (AxisType.Auto, AxisType.Auto))
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, PartitionSpec(*spec)), lambda at: values[at])


def expected() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(ROWS, COLUMNS)).astype(np.float32)
    return {"wide": wide, "half": wide[:8, :16].astype(jnp.bfloat16), "count": np.asarray(7, np.int32)}


def sharded(specs: dict[str, tuple[Any, ...]], values: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    return {"arrays": [{name: placed(specs[name], one) for name, one in values.items()}], "note": "kept"}


def save_sharded(store: Store, run: str) -> list[str]:
    specs: dict[str, tuple[Any, ...]] = {"wide": (None, ("rows", "columns")), "half": ("columns", "rows"), "count": ()}
    with Checkpointer(store, run, JaxRanks()) as checkpointer:
        checkpointer.save(1, state_of_tree(sharded(specs, expected())), {})
    store.refresh()
    saved = load(store, run)
    return [str(cell) for path in saved.paths for cell in saved.cells(path)]


def restored(store: Store, run: str) -> bool:
    """Onto other shardings: whether every part of every device has the bits that were saved."""
    values = expected()
    specs: dict[str, tuple[Any, ...]] = {"wide": ("rows",), "half": (None, "rows"), "count": ()}
    empty = {name: np.zeros_like(one) for name, one in values.items()}
    like = sharded(specs, empty)
    tree = restore_tree(load(store, run), like)
    for name, array in tree["arrays"][0].items():
        assert array.sharding == like["arrays"][0][name].sharding
        for part in array.addressable_shards:
            if np.asarray(part.data).tobytes() != np.ascontiguousarray(values[name][part.index]).tobytes():
                return False
        assert not any(np.asarray(part.data).any() for part in like["arrays"][0][name].addressable_shards)
    return bool(tree["note"] == "kept")


def in_the_background(store: Store) -> bool:
    """Arrays that are gone when the save is: what was staged counts. PRNG keys keep their generator."""
    key = jax.random.key(3)
    tree = {"key": key, "values": jnp.arange(1000.0)}
    double = jax.jit(lambda values: values * 2, donate_argnums=0)
    with Checkpointer(store, "background", JaxRanks(), asynchronous=True) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, state_of_tree(tree), {})
            tree["values"] = double(tree["values"])
    for step in (1, 2):
        back = restore_tree(load(store, "background", step), {"key": jax.random.key(0), "values": jnp.zeros(1000)})
        assert (back["values"] == jnp.arange(1000.0) * step).all()
        assert (jax.random.normal(back["key"], (5,)) == jax.random.normal(key, (5,))).all()
    return True


def refusals(store: Store, ds: Dataset) -> list[str]:
    """What is said of things that do not fit."""
    saved = load(store, "one-sharded")
    zeros = {name: jnp.zeros(one.shape, one.dtype) for name, one in expected().items()}
    wrong: list[Any] = [
        lambda: fit(store, ds, Config(epochs=3, global_batch_size=12, seed=6, width=8), "one-7", resume=True),
        lambda: fit(store, ds, CONFIG, "nothing", resume=True),
        lambda: fit(store, ds, Config(inputs="picture"), "x"),
        lambda: restore_tree(saved, {"arrays": [zeros], "note": "", "more": jnp.zeros(3)}),
        lambda: restore_tree(saved, {"arrays": [{**zeros, "wide": jnp.zeros((3, 3))}], "note": ""}),
        lambda: restore_tree(saved, {"arrays": [{**zeros, "half": jax.random.key(1)}], "note": ""}),
        lambda: state_of_tree({"a": {"b": jnp.zeros(1)}, "a/b": jnp.zeros(1)}),
    ]
    messages = []
    for attempt in wrong:
        try:
            attempt()
            messages.append("")
        except LeptonError as error:
            messages.append(str(error))
    return messages


def main(store: str, out: str, stage: str, process: str = "", address: str = "") -> None:
    if process:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, 2, int(process))
    kind = "two" if process else "one"
    assert jax.device_count() == 8 and len(jax.local_devices()) == (4 if process else 8)
    with Store.open(store) as opened:
        ds = Dataset.open(opened, "patterns")
        found = first(opened, ds, kind) if stage == "first" else second(opened, ds, kind)
        if stage == "first" and process:
            found["twin"] = train(opened, ds, "two-twin", max_steps=7)
    found["torch"] = "torch" in sys.modules
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
