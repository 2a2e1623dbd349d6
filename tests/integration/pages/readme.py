"""README.md: what `lepton demo` leaves behind, in little. Its other blocks show shapes of programs, or install things."""

from __future__ import annotations

from collections.abc import Iterator

from leptonstore.cli.group import lepton
from leptonstore.store import Store
from tests.integration.docs_blocks import Place
from tests.integration.training_data import write_patterns

NOT_RUN = {
    "python3 -m venv": "installs packages",
    "from loaders import DataLoader, Mixture": "part of a program",
    "lepton init": "a list of commands",
}


def setting(place: Place) -> Iterator[None]:
    (place.folder / "lepton-demo").mkdir()
    with Store.create(place.folder / "lepton-demo" / "store") as store:
        write_patterns(store, "digits")
        lepton.main(["branch", "digits@prepared", "--store", store.url], standalone_mode=False)
    yield
    assert len(place.names["birds"]) == 1000 and place.names["result"].val_accuracy is not None
