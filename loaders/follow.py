"""A dataset that grows during a run: which version each epoch reads (`DataLoader(follow=...)`).

    epoch begins   the newest version of the branch, if it goes on from the one that was read last; else BadInput
    in an epoch    nothing changes: its length and rows are those of the version that it began with
    a state        names its version: the rest of its epoch is read from that one, and the next epoch follows again

All ranks must read the same version. With torch.distributed rank 0 decides and the others are told (`agreed`, collective); several ranks
without it are told by whoever starts them (`Loader.follow_to`), since each for itself could meet another newest version.

A view has its rows chosen and a mixture its versions: neither is followed. What of the data, and what of the arena, is read again stands in
`loaders.source.ColumnSource.of_version`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from loaders.source import BadInput, NotFound, versions
from loaders.state import LoaderState, LoaderStateError

_KEPT = "versions with a tag or branch are kept (`lepton tag NAME@COMMIT`), `lepton pull` brings back what a remote has"


class Follower:
    """What follows a branch of one dataset. Immutable; pickles.

    follow: True for the branch that the dataset was opened by, or the name of another one.

    Raises ValueError for what is no whole dataset, BadInput for what is no branch.
    """

    def __init__(self, dataset: Any, follow: bool | str) -> None:
        if not is_dataset(dataset):
            raise ValueError(
                f"follow: a {type(dataset).__name__} has fixed versions; only a dataset itself can be followed"
            )
        if dataset.selection is not None:
            raise ValueError(
                f"follow: this is a view of {len(dataset)} rows of {dataset.name!r}, which stay the same ones: "
                "follow the dataset itself, or make a loader of a new view"
            )
        self.name = str(dataset.name)
        self.branch = versions().branch_of(dataset, None if follow is True else str(follow))

    def newest(self, dataset: Any) -> str:
        """The commit that the branch is at. Raises NotFound when it is gone, BadInput unless it goes on from `dataset`."""
        try:
            return str(versions().newest(dataset, self.branch))
        except BadInput as error:
            raise BadInput(
                f"{error}. Open the version that you want, and begin a new run, or read on with follow=False"
            ) from None

    def version(self, dataset: Any, commit: str) -> Any:
        """The dataset at a commit that comes after `dataset`. Raises NotFound, or BadInput for any other commit."""
        found = versions().version(dataset, commit)
        versions().require_descent(dataset, dataset.commit, commit, f"follow: {self.name} is to be")
        return found

    def restored(self, dataset: Any, saved: LoaderState) -> Any:
        """The dataset at the version of a state. Raises LoaderStateError for a version of another line, or one that is not kept."""
        try:
            found = require_kept(dataset, saved)
            versions().require_descent(
                dataset, saved.commit, versions().newest(found, self.branch), f"{self.name}@{self.branch} is"
            )
        except LoaderStateError:
            raise
        except (BadInput, NotFound, ValueError) as error:
            raise LoaderStateError(
                f"the loader state is of {saved.named()}, and {error}: open {saved.dataset}@{saved.commit[:12]} without follow to "
                "finish its epoch, or begin a new run"
            ) from None
        return found


def is_dataset(dataset: Any) -> bool:
    """Whether it is a dataset or view itself, not something made of some."""
    return bool(getattr(type(dataset), "__lepton_dataset__", False))


def require_kept(dataset: Any, saved: LoaderState) -> Any:
    """The dataset at the version of a state. Raises LoaderStateError when it is not kept any more."""
    try:
        return versions().version(dataset, saved.commit)
    except NotFound as error:
        raise LoaderStateError(f"the loader state is of {saved.named()}: {error}; {_KEPT}") from None


def agreed(decide: Callable[[], str]) -> str | None:
    """What rank 0 decides (a commit: 64 hex digits), on every rank; None where no torch.distributed is initialised. Collective.

    Raises what `decide` raised on rank 0, and LoaderStateError on the others.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return None
    import torch

    # A tensor, not an object: nothing that is received is unpickled.
    on_gpu = dist.get_backend() == "nccl"
    told = torch.zeros(32, dtype=torch.uint8, device="cuda" if on_gpu else "cpu")
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            told.copy_(torch.frombuffer(bytearray.fromhex(decide()), dtype=torch.uint8))
        except Exception as failure:  # the others wait: they are told zeros
            error = failure
    dist.broadcast(told, 0)
    if error is not None:
        raise error
    if not told.any():
        raise LoaderStateError("follow: rank 0 could not find the next version; its own error says why")
    return bytes(told.cpu().tolist()).hex()
