"""Keras 3 and the loader: `model.fit(loader)` works as it is; `ExactEpochs` makes its epochs the loader's.

Keras opens a loader more often than it trains on it: once to see the shapes of a batch, and once more at the end of each epoch. Every epoch
of `fit` is complete, but the loader's epochs 1, 3, 5, ... are trained on, and the rest of a restored one is lost on the look at the
shapes. With the callback they are the loader's next epochs, one after the other, from the very position of its state.

    model.fit(loader, epochs=2, callbacks=[ExactEpochs(loader)])
"""

from __future__ import annotations

from typing import Any

from loaders.loader import Loader
from loaders.source import MissingExtra
from loaders.state import FORMAT

try:
    import keras
except ModuleNotFoundError as error:
    raise MissingExtra("training with Keras", "keras", error.name or "keras") from error


class ExactEpochs(keras.callbacks.Callback):  # type: ignore[misc,unused-ignore]
    """Give `fit` the epochs of its loader, as the loader's state says. To be made before `fit` and after any `load_state_dict`.

    In a restored epoch Keras warns that the data ran out: it is told the steps of a whole one. Raises ValueError for a loader that
    is torch's own.
    """

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self._loader = loader
        self._state = self._position()

    def _position(self) -> dict[str, Any]:
        state = self._loader.state_dict()
        if state.get("format") != FORMAT:
            raise ValueError("ExactEpochs is for a loader over a LeptonStore dataset, and this one is torch's own")
        return state

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Back to where the loader stood before Keras looked at a batch."""
        self._loader.load_state_dict(self._state)
        self._epoch = int(self._state["epoch"])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The next epoch, whatever Keras has opened since. Where a state is in its middle, that is where it goes on."""
        self._loader.set_epoch(self._epoch)
        self._epoch += 1

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """For another `fit` with this callback."""
        self._state = self._position()
