"""One rank of a run of Lightning, Accelerate or transformers' Trainer over LeptonStore's loader: `framework_ranks.py NAME STORE OUT`.

Started once per rank by test_frameworks.py, with RANK, WORLD_SIZE and so on in its environment, as torchrun sets them.
Writes a JSON file {case: what this rank saw}.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leptonstore.dataset import Dataset
from loaders import DataLoader

BATCH = 6


@contextlib.contextmanager
def counted_reads() -> Iterator[dict[str, Any]]:
    """How rows are read: the sizes of batches, and whether any row was read alone."""
    seen: dict[str, Any] = {"batches": [], "alone": 0}
    many, one = Dataset.__getitems__, Dataset.__getitem__

    def counted_many(self: Dataset, rows: list[int]) -> list[dict[str, Any]]:
        seen["batches"].append(len(rows))
        return many(self, rows)

    def counted_one(self: Dataset, key: int | slice) -> Any:
        seen["alone"] += 1
        return one(self, key)

    Dataset.__getitems__, Dataset.__getitem__ = counted_many, counted_one  # type: ignore[method-assign, assignment]
    try:
        yield seen
    finally:
        Dataset.__getitems__, Dataset.__getitem__ = many, one  # type: ignore[method-assign]


def double(batch: Any) -> Any:
    return (batch[0], batch[1] * 2)


def looked_at(batch: Any) -> dict[str, Any]:
    """A batch as JSON: its rows, and what kinds of things stand in it."""
    values = list(batch.values()) if isinstance(batch, dict) else list(batch)
    kinds = [str(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__ for value in values]
    return {"ids": values[0].tolist(), "kinds": kinds, "second": values[1].tolist()}


# -- Lightning ---------------------------------------------------------------------------------------------------------


def lightning(dataset: Dataset) -> dict[str, Any]:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self, loader: Any) -> None:
            super().__init__()
            self.layer, self.loader, self.seen = nn.Linear(1, 1), loader, []  # type: ignore[var-annotated]

        def train_dataloader(self) -> Any:
            return self.loader()

        def training_step(self, batch: Any, index: int) -> Any:
            self.seen.append(looked_at(batch))
            return self.layer(torch.ones(1, 1)).sum()

        def predict_step(self, batch: Any, index: int) -> Any:
            self.seen.append(looked_at(batch))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    class SaveAtStepThree(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(Path(sys.argv[3]).parent / "step3.ckpt")

    def trainer(sampler: bool, callbacks: Any = None) -> Any:
        return lightning.Trainer(
            callbacks=callbacks,
            accelerator="cpu",
            devices=2,
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=sampler,
        )

    def fit(sampler: bool, in_hook: bool, **options: Any) -> dict[str, Any]:
        def make() -> Any:
            return DataLoader(dataset, BATCH, **options)

        module = Module(make)
        with counted_reads() as reads:
            trainer(sampler).fit(module, *(() if in_hook else (make(),)))
        return {"seen": module.seen, "reads": reads}

    def resume(sampler: bool, **options: Any) -> dict[str, Any]:
        """What came after the third step, in the run that was saved there and in one that goes on from there."""
        whole, rest = Module(None), Module(None)
        trainer(sampler, [SaveAtStepThree()]).fit(whole, DataLoader(dataset, BATCH, shuffle=True, **options))
        checkpoint = Path(sys.argv[3]).parent / "step3.ckpt"
        trainer(sampler).fit(rest, DataLoader(dataset, BATCH, shuffle=True, **options), ckpt_path=checkpoint)
        return {"whole": whole.seen[3:], "rest": rest.seen}

    def predict() -> dict[str, Any]:
        module = Module(None)
        with counted_reads() as reads:
            trainer(True).predict(module, DataLoader(dataset, BATCH), return_predictions=False)
        return {"seen": module.seen, "reads": reads}

    made = {"as_tuple": ("id", "score"), "transform": double}
    return {
        "rebuilt": fit(True, False, shuffle=True),
        "rebuilt in a hook": fit(True, True, shuffle=True, **made),
        "rebuilt with a tuple": fit(True, False, **made),
        "not rebuilt": fit(False, False, shuffle=True, seed=4),
        "predicting": predict(),
        "rebuilt and resumed": resume(True),
        "not rebuilt and resumed": resume(False, seed=4),
    }


# -- Accelerate --------------------------------------------------------------------------------------------------------


def accelerate(dataset: Dataset) -> dict[str, Any]:
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    def run(config: Any = None, prepared: bool = True, epochs: int = 1, **options: Any) -> dict[str, Any]:
        accelerator = Accelerator(cpu=True, dataloader_config=config)
        loader: Any = DataLoader(dataset, BATCH, **options)
        if prepared:
            loader = accelerator.prepare(loader)
        with counted_reads() as reads:
            seen = [looked_at(batch) for _ in range(epochs) for batch in loader]
        return {"seen": seen, "reads": reads}

    made = {"as_tuple": ("id", "score"), "transform": double}
    return {
        "prepared": run(shuffle=True, epochs=2),
        "prepared with a tuple": run(**made),
        "dispatched": run(DataLoaderConfiguration(dispatch_batches=True), **made),
        "not prepared": run(prepared=False, shuffle=True, seed=4, epochs=2),
    }


# -- transformers ------------------------------------------------------------------------------------------------------


def transformers(dataset: Dataset) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = nn.Linear(1, 1), []  # type: ignore[var-annotated]

        def forward(self, id: Any, score: Any, **rest: Any) -> dict[str, Any]:
            self.seen.append(looked_at({"id": id, "score": score}))
            return {"loss": self.layer(torch.ones(1, 1)).sum()}

    class OwnLoader(Trainer):
        def get_train_dataloader(self) -> Any:
            return DataLoader(dataset, BATCH, shuffle=True, seed=4, columns=["id", "score"])

    class PreparedLoader(Trainer):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(DataLoader(dataset, BATCH, shuffle=True, columns=["id", "score"]))

    def run(kind: type[Any]) -> dict[str, Any]:
        arguments = TrainingArguments(
            output_dir=str(Path(sys.argv[3]).parent / "trainer"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=2,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        model = Model()
        with counted_reads() as reads:
            kind(model=model, args=arguments, train_dataset=dataset).train()
        return {"seen": model.seen, "reads": reads}

    return {"dataset": run(Trainer), "prepared loader": run(PreparedLoader), "own loader": run(OwnLoader)}


RUNS: dict[str, Callable[[Dataset], dict[str, Any]]] = {
    "lightning": lightning,
    "accelerate": accelerate,
    "transformers": transformers,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    result = RUNS[sys.argv[1]](Dataset.open(sys.argv[2], "rows"))
    Path(sys.argv[3]).write_text(json.dumps(result))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    # Threads of theirs may outlive the interpreter ("terminate called without an active exception"), which is not what is tested.
    sys.stdout.flush()
    os._exit(0)
