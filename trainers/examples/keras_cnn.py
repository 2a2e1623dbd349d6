"""The Keras program of the article, fed from a store: `model.fit(loader, epochs=5)`. `python -m trainers.examples.keras_cnn --help`

    KERAS_BACKEND=tensorflow python -m trainers.examples.keras_cnn --data mnist/

Model, optimizer and loop are Keras' own, on whatever backend it has; only what it is fed with is another: a loader over a dataset version,
whose order and position are those of every other framework (docs/feeds.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leptonstore.errors import MissingExtra

if TYPE_CHECKING:
    from leptonstore.dataset import Dataset

DATASET = "keras-images"
BATCH_ROWS, EVALUATE_ROWS = 32, 250  # Keras' own default; and rows that are evaluated together


@click.command()
@click.option("--workdir", type=Path, default=Path("lepton-keras"), show_default=True, help="The store goes here.")
@click.option("--data", metavar="DIR", default="digits", help="IDX files, as MNIST's (default: scikit-learn's digits).")
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides weights and order.")
def main(workdir: Path, data: str, epochs: int, seed: int) -> None:
    """Train the article's network with Keras on small grey images from a store; prints one line of JSON."""
    from leptonstore.dataset import write_dataset
    from leptonstore.dataset.importers import open_source
    from leptonstore.store import Store
    from leptonstore.store.config import DOCUMENT

    place = workdir / "store"
    with Store.open(place) if (place / DOCUMENT).exists() else Store.create(place) as store:
        ds = write_dataset(store, DATASET, open_source(data), f"import of {Path(data).name}")
        click.echo(json.dumps(fit(ds, epochs, seed)))


def fit(ds: Dataset, epochs: int, seed: int = 0) -> dict[str, Any]:
    """Keras' result on the rows that are held out, its backend, and the state of the loader, from which any framework can go on."""
    try:
        import keras
    except ModuleNotFoundError as error:
        raise MissingExtra("training with Keras", "keras", error.name or "keras") from error

    from leptonstore.dataset.schema import class_names, tensor_shape
    from loaders import DataLoader
    from loaders.keras import ExactEpochs
    from trainers.config import DataConfig
    from trainers.tasks import split_dataset

    keras.utils.set_random_seed(seed)
    train, held_out = split_dataset(ds, DataConfig())
    loader = DataLoader(train, BATCH_ROWS, shuffle=True, seed=seed, as_tuple=("image", "label"))
    shape, classes = tensor_shape(ds.schema.field("image")), class_names(ds.schema.field("label"))
    assert shape is not None and classes is not None
    model = cnn(shape, len(classes))
    model.fit(loader, epochs=epochs, verbose=0, callbacks=[ExactEpochs(loader)])
    rest = DataLoader(held_out, EVALUATE_ROWS, as_tuple=("image", "label"))
    found = model.evaluate(rest, verbose=0, return_dict=True)
    return {"rows": len(held_out), **found, "backend": keras.backend.backend(), "loader": loader.state_dict()}


def cnn(shape: tuple[int, ...], classes: int) -> Any:
    """The article's network, for images as they are stored: uint8 [batch, height, width]."""
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.Rescaling(1 / 255),
            layers.Reshape((*shape, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(classes, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


if __name__ == "__main__":
    main()
