"""Ranks of Lightning or of the Hugging Face Trainer that save into a store, and go on from there: `framework_checkpoints_run.py FOLDER`.

FOLDER/plan.json: {"name": "lightning" | "transformers", "ranks": n}. Each rank writes FOLDER/<rank>.json: the losses of a run that never
stopped, and of one that was stopped and resumed, and the weights of both in hexadecimal digits.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from leptonstore.dataset import Dataset
from leptonstore.store import Store
from loaders import DataLoader
from tests.integration.ranks import start_ranks

BATCH, STOP, EPOCHS = 6, 5, 3


class Net(nn.Module):
    """Draws random numbers of three kinds at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, score: torch.Tensor, **rest: Any) -> dict[str, torch.Tensor]:
        noise = random.random() + float(np.random.rand())
        loss = (self.layers(score.reshape(-1, 1) / 10 + noise) - score.reshape(-1, 1)).square().mean()
        return {"loss": loss}


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number)


def told(losses: list[float], model: nn.Module) -> dict[str, Any]:
    weights = b"".join(tensor.numpy().tobytes() for _, tensor in sorted(model.state_dict().items()))
    return {"losses": losses, "weights": weights.hex()}


def lightning(folder: Path, rank: int, ranks: int) -> dict[str, Any]:
    import lightning

    from trainers.lightning import StoreCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.losses = Net(), []  # type: ignore[var-annotated]

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.net(batch["score"])["loss"]
            self.losses.append(float(loss.detach()))
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), 0.05)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2)}

    def fit(store: Store, run: str, number: int, max_steps: int) -> Module:
        seed(number + rank)
        module, saved = Module(), StoreCheckpoint(store, run, every_n_steps=STOP)
        loader = DataLoader(Dataset(store, "rows", "main", commit), BATCH, shuffle=True, columns=["id", "score"])
        trainer = lightning.Trainer(
            callbacks=[saved],
            accelerator="cpu",
            devices=ranks,
            max_epochs=EPOCHS,
            max_steps=max_steps,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, loader, ckpt_path=saved.ckpt_path)
        return module

    with Store.open(folder / "store") as store:
        commit = Dataset.open(store, "rows").commit
        whole = fit(store, "whole", 0, -1)
        first = fit(store, "parts", 0, STOP)
        rest = fit(store, "parts", 77, -1)  # another seed: what it draws comes from the checkpoint
        return {"whole": told(whole.losses, whole.net), "parts": told(first.losses + rest.losses, rest.net)}


def transformers(folder: Path, rank: int, ranks: int) -> dict[str, Any]:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from trainers.huggingface import StoreCallback, checkpoint_directory

    class Stopping(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_training_stop = control.should_training_stop or state.global_step == stop_at

    class Recording(Trainer):
        def compute_loss(self, *args: Any, **options: Any) -> Any:
            found = super().compute_loss(*args, **options)
            losses.append(float(found.detach()))
            return found

    losses: list[float] = []
    stop_at = 0

    def fit(store: Store, run: str, number: int, stop: int) -> tuple[list[float], nn.Module]:
        nonlocal losses, stop_at
        losses, stop_at = [], stop
        arguments = TrainingArguments(
            output_dir=str(folder / f"{run}-{number}"),
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS,
            use_cpu=True,
            report_to="none",
            save_strategy="steps",
            save_steps=STOP,
            logging_steps=1,
            logging_strategy="steps",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=3,
        )
        seed(number + rank)
        model = Net()
        trainer = Recording(
            model=model,
            args=arguments,
            train_dataset=Dataset(store, "rows", "main", commit),
            callbacks=[StoreCallback(store, run), Stopping()],
        )
        seed(3 + rank)  # of which the framework makes the order, in every process anew
        torch.rand(number), np.random.rand(number), [random.random() for _ in range(number)]
        trainer.train(resume_from_checkpoint=checkpoint_directory(store, run, arguments.output_dir))
        return list(losses), model

    with Store.open(folder / "store") as store:
        commit = Dataset.open(store, "rows").commit
        whole, one = fit(store, "whole", 0, 0)
        first, _ = fit(store, "parts", 0, STOP)
        rest, other = fit(store, "parts", 77, 0)  # in a directory of its own: all comes from the store
        return {"whole": told(whole, one), "parts": told(first + rest, other)}


def run(rank: int, folder: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    torch.set_num_threads(1)
    if plan["ranks"] > 1:
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(plan["ranks"]),
            LOCAL_WORLD_SIZE=str(plan["ranks"]),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=plan["port"],
            TORCHELASTIC_RUN_ID="test",  # how Lightning knows that its ranks were started for it
        )
    made = {"lightning": lightning, "transformers": transformers}[plan["name"]](folder, rank, plan["ranks"])
    (folder / f"{rank}.json").write_text(json.dumps(made))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # threads of theirs may outlive the interpreter


if __name__ == "__main__":
    start_ranks(run, json.loads((Path(sys.argv[1]) / "plan.json").read_text())["ranks"])
