"""A CNN on images, trained with JAX: data-parallel over all devices of all processes, with checkpoints in the store.

    python -m trainers.examples.jax_mnist mnist --store .lepton --epochs 2
    python -m trainers.examples.jax_mnist mnist --store .lepton --epochs 2 --resume

This is the path to TPUs: the same program, on as many processes as there are hosts (`--coordinator`, `--processes`, `--process`, or
nothing where jax.distributed finds them by itself). What it shows:

    feed      loaders.jax: each process reads its share; one shape for every batch, and "_valid" says which rows are real
    step      one jit: parameters are replicated, rows are sharded over the mesh's "data" axis; XLA adds up the gradients
    exact     the loss is a sum over valid rows / their number in the global batch, so that uneven shares change nothing
    resume    parameters, moments, step, PRNG key and the place in the data are one checkpoint: what follows is the same, bit for bit

Tested on eight forced CPU devices, as one process and as two. Not run on a TPU by us.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import class_names, tensor_shape
from leptonstore.errors import BadInput
from leptonstore.store import Store
from loaders.jax import JaxLoader
from loaders.receipt import Receipt
from trainers.config_tree import first_difference
from trainers.jax import Checkpoint, Checkpointer, JaxRanks, Retention, load, provenance_of, restore_tree, state_of_tree

Params: TypeAlias = dict[str, dict[str, jax.Array]]
State: TypeAlias = dict[str, Any]  # {"params", "moments": {"first", "second"}, "step", "key"}
Batch: TypeAlias = dict[str, jax.Array]

VALIDATION_SPLITS = ("val", "validation", "test")


@dataclass(frozen=True)
class Config:
    """What decides the numbers. A resumed run must have the same."""

    epochs: int = 2
    global_batch_size: int = 128
    lr: float = 1e-3
    seed: int = 0
    width: int = 32
    dropout: float = 0.25
    inputs: str = "image"
    labels: str = "label"

    def to_dict(self) -> dict[str, Any]:
        """As other trainings write theirs, so that `lepton lineage` and `lepton checkpoint show` find their way."""
        return {
            "model": {
                "reference": "trainers.examples.jax_mnist:init",
                "params": {"width": self.width, "dropout": self.dropout},
            },
            "optimizer": {"name": "adam", "lr": self.lr},
            "data": {"inputs": self.inputs, "labels": self.labels, "global_batch_size": self.global_batch_size},
            "epochs": self.epochs,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Result:
    """steps of the run; losses of the steps that this program made; accuracy on the validation rows, None when it was stopped."""

    steps: int
    accuracy: float | None
    losses: list[float] = field(default_factory=list)


# -- the model -------------------------------------------------------------------------------------------------------------


def init(key: jax.Array, shape: tuple[int, ...], classes: int, width: int) -> Params:
    """A convolution, a dense layer, and the classifier. Images are uint8 [b, h, w] or [b, h, w, c]."""
    height, breadth, *channels = shape
    pixels = (height // 2) * (breadth // 2) * width
    shapes = {"conv": (3, 3, *(channels or [1]), width), "dense": (pixels, 4 * width), "out": (4 * width, classes)}
    params = {}
    for part, (name, size) in zip(jax.random.split(key, len(shapes)), shapes.items(), strict=True):
        bound = np.sqrt(2 / np.prod(size[:-1]))
        params[name] = {"kernel": jax.random.normal(part, size) * bound, "bias": jnp.zeros(size[-1])}
    return params


def logits_of(
    params: Params, images: jax.Array, drop: Callable[[jax.Array], jax.Array] = lambda values: values
) -> jax.Array:
    """[b, classes]; drop: what is done to the features before the classifier."""
    values = images.astype(jnp.float32) / 255
    values = values.reshape(*values.shape[:3], -1)
    layout = ("NHWC", "HWIO", "NHWC")
    values = jax.lax.conv_general_dilated(values, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=layout)
    values = jax.nn.relu(values + params["conv"]["bias"])
    values = jax.lax.reduce_window(values, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    values = values.reshape(len(values), -1) @ params["dense"]["kernel"] + params["dense"]["bias"]
    return drop(jax.nn.relu(values)) @ params["out"]["kernel"] + params["out"]["bias"]


# -- a step ----------------------------------------------------------------------------------------------------------------


def train_step(state: State, batch: Batch, config: Config) -> tuple[State, jax.Array]:
    """(the state after one step of Adam, mean loss over the valid rows of the global batch)."""
    key, drops = jax.random.split(state["key"])

    # Of a row's place among the valid ones of the global batch: the same on every mesh, wherever padding lies.
    places = jnp.cumsum(batch["_valid"]) - 1

    def drop(values: jax.Array) -> jax.Array:
        each = jax.vmap(functools.partial(jax.random.fold_in, drops))(places)
        kept = jax.vmap(lambda one: jax.random.bernoulli(one, 1 - config.dropout, values.shape[1:]))(each)
        return jnp.where(kept, values / (1 - config.dropout), 0)

    def loss_of(params: Params) -> jax.Array:
        chances = jax.nn.log_softmax(logits_of(params, batch[config.inputs], drop))
        losses = -jnp.take_along_axis(chances, batch[config.labels][:, None], 1)[:, 0]
        valid = batch["_valid"]
        return jnp.where(valid, losses, 0).sum() / jnp.maximum(valid.sum(), 1)

    loss, gradients = jax.value_and_grad(loss_of)(state["params"])
    step = state["step"] + 1
    params, moments = adam(state["params"], gradients, state["moments"], step, config.lr)
    return {"params": params, "moments": moments, "step": step, "key": key}, loss


def adam(
    params: Params, gradients: Params, moments: dict[str, Params], step: jax.Array, lr: float
) -> tuple[Params, dict[str, Params]]:
    """Kingma & Ba 2015, algorithm 1, with its default constants. step counts from 1."""
    mean, square, tiny = 0.9, 0.999, 1e-8
    first = jax.tree.map(lambda m, g: mean * m + (1 - mean) * g, moments["first"], gradients)
    second = jax.tree.map(lambda v, g: square * v + (1 - square) * g * g, moments["second"], gradients)
    rate = lr * jnp.sqrt(1 - square**step) / (1 - mean**step)
    made = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + tiny), params, first, second)
    return made, {"first": first, "second": second}


def correct_of(params: Params, batch: Batch, config: Config) -> jax.Array:
    """How many valid rows of the batch the model labels right."""
    right = logits_of(params, batch[config.inputs]).argmax(1) == batch[config.labels]
    return (right & batch["_valid"]).sum()


class Programs(NamedTuple):
    """What the devices run: parameters are on all of them, rows are shared out."""

    begin: Callable[[], State]
    step: Callable[[State, Batch], tuple[State, jax.Array]]
    correct: Callable[[Params, Batch], jax.Array]


@functools.lru_cache
def compiled(config: Config, mesh: Mesh, shape: tuple[int, ...], classes: int) -> Programs:
    """Compiled when they are first called; again for another run of the same configuration, they are there already."""
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    begin = functools.partial(_begin, shape=shape, classes=classes, config=config)
    step, correct = functools.partial(train_step, config=config), functools.partial(correct_of, config=config)
    return Programs(
        jax.jit(begin, out_shardings=whole),
        # The new state takes the place of the old one in memory.
        jax.jit(step, in_shardings=(whole, rows), out_shardings=(whole, whole), donate_argnums=0),
        jax.jit(correct, in_shardings=(whole, rows), out_shardings=whole),
    )


# -- the run ---------------------------------------------------------------------------------------------------------------


def fit(
    store: Store,
    dataset: Dataset,
    config: Config,
    run: str,
    *,
    mesh: Mesh | None = None,
    resume: bool = False,
    checkpoint_every: int = 100,
    max_steps: int | None = None,
    tell: Callable[[int, float], None] = lambda step, loss: None,
) -> Result:
    """Train, with a checkpoint every so many steps and at the end; each process calls it, with a Store of its own.

    mesh: its axis "data" shares the rows out; default: all devices. resume: from the newest checkpoint of `run`. max_steps: save and return
    once the run has done so many. tell: is told each step and its loss.
    Raises BadInput (no images with class labels, no splits; a checkpoint of another run), RefMissing (nothing to resume).
    """
    training, validation, shape, classes = _rows_of(dataset, config)
    if mesh is None:
        mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    programs = compiled(config, mesh, shape, classes)
    columns = [config.inputs, config.labels]
    loader = JaxLoader(
        training, global_batch_size=config.global_batch_size, shuffle=True, seed=config.seed, mesh=mesh, columns=columns
    )
    state, facts = programs.begin(), {"config": config.to_dict(), "data": _described(training)}
    done, earlier, receipt = 0, None, None
    if resume:
        saved = load(store, run)
        _require_same(saved, facts)
        state = restore_tree(saved, state)
        loader.load_state_dict(saved.manifest["loader"])
        done, earlier = saved.step, saved.manifest["provenance"]
        receipt = Receipt.from_dict(saved.manifest["receipt"])
    provenance = provenance_of(facts["config"], done, earlier)
    steps_per_epoch = len(loader)
    steps, losses = steps_per_epoch * config.epochs, []
    last = steps if max_steps is None else min(steps, max_steps)
    with Checkpointer(store, run, JaxRanks(), Retention(keep_last=3)) as checkpointer:
        while done < last:
            if not resume or done % steps_per_epoch == 0:
                loader.set_epoch(done // steps_per_epoch)
            resume = False
            for batch in loader:
                state, loss = programs.step(state, batch)
                done += 1
                losses.append(float(loss))  # waits for the devices: where steps are short, read it less often
                tell(done, losses[-1])
                if done % checkpoint_every == 0 or done == last:
                    handed = loader.receipt() if receipt is None else receipt.then(loader.receipt())
                    told = {"loader": loader.state_dict(), "receipt": handed.to_dict(), "provenance": provenance}
                    checkpointer.save(done, state_of_tree(state), {**facts, **told})
                if done == last:
                    break
    if done < steps:
        return Result(done, None, losses)
    check = JaxLoader(validation, global_batch_size=config.global_batch_size, mesh=mesh, columns=columns)
    correct = sum(int(programs.correct(state["params"], batch)) for batch in check)
    return Result(done, correct / len(validation), losses)


def _begin(shape: tuple[int, ...], classes: int, config: Config) -> State:
    key, weights = jax.random.split(jax.random.key(config.seed))
    params = init(weights, shape, classes, config.width)
    zeros = {name: jax.tree.map(jnp.zeros_like, params) for name in ("first", "second")}
    return {"params": params, "moments": zeros, "step": jnp.int32(0), "key": key}


def _rows_of(dataset: Dataset, config: Config) -> tuple[Dataset, Dataset, tuple[int, ...], int]:
    """(training rows, validation rows, shape of an image, number of classes)."""
    for name in (config.inputs, config.labels):
        if name not in dataset.schema.names:
            raise BadInput(f"{dataset.name} has no column {name!r}; it has {', '.join(dataset.schema.names)}")
    shape, names = tensor_shape(dataset.schema.field(config.inputs)), class_names(dataset.schema.field(config.labels))
    if shape is None or len(shape) not in (2, 3) or names is None:
        raise BadInput(
            f"{dataset.name} has no images of one size in {config.inputs!r} with class labels in {config.labels!r}"
        )
    splits = dataset.splits()
    held_out = next((name for name in VALIDATION_SPLITS if name in splits), None)
    if "train" not in splits or held_out is None:
        raise BadInput(
            f"{dataset.name} has no splits for training and validation; it has {', '.join(splits) or 'none'}"
        )
    return dataset.split("train"), dataset.split(held_out), tuple(shape), len(names)


def _described(rows: Dataset) -> dict[str, Any]:
    """As the checkpoints of other trainings name their data, so that `lepton lineage` finds it."""
    told = {"name": rows.name, "commit": rows.commit, "fingerprint": rows.fingerprint, "rows": len(rows)}
    return {"training": told}


def _require_same(saved: Checkpoint, facts: dict[str, Any]) -> None:
    difference = first_difference({key: saved.manifest.get(key) for key in facts}, facts)
    if difference:
        raise BadInput(f"{saved.whose} is of another training: {difference}; use the same values or another run name")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dataset")
    parser.add_argument("--store", default=".lepton")
    parser.add_argument("--run", default="jax-mnist")
    parser.add_argument("--epochs", type=int, default=Config.epochs)
    parser.add_argument("--batch-size", type=int, default=Config.global_batch_size)
    parser.add_argument("--lr", type=float, default=Config.lr)
    parser.add_argument("--seed", type=int, default=Config.seed)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--coordinator", help="host:port of process 0, where there are several")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    options = parser.parse_args()
    if options.coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPUs; accelerators have their own
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    config = Config(options.epochs, options.batch_size, options.lr, options.seed)
    main_process = jax.process_index() == 0

    def tell(step: int, loss: float) -> None:
        if main_process and step % 50 == 0:
            sys.stdout.write(f"step {step:,}: loss {loss:.4f}\n")

    with Store.open(options.store) as store:
        dataset = Dataset.open(store, options.dataset)
        result = fit(
            store,
            dataset,
            config,
            options.run,
            resume=options.resume,
            checkpoint_every=options.checkpoint_every,
            tell=tell,
        )
    if main_process and result.accuracy is not None:
        sys.stdout.write(f"accuracy {result.accuracy:.4f} after {result.steps:,} steps\n")


if __name__ == "__main__":
    main()
