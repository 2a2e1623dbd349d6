"""A model that is trained again from its lineage has the same weights, bit for bit; what cannot have is refused, or told, by name."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from training_data import quick_config, quick_options, train_command, write_patterns

from leptonstore.cli.group import lepton
from leptonstore.dataset import Dataset, delete_ref, list_refs
from leptonstore.errors import BadInput, RefMissing
from leptonstore.store import Store
from trainers import checkpoint as checkpoints
from trainers.deploy import deploy
from trainers.loop import Trainer
from trainers.parallel import World
from trainers.reproduce import Comparison, read_record, reproduce, require_confirmed, require_reproducible
from trainers.weights import checkpoint_digest, weights_digest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "store", cache_dir=tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def model(store: Store) -> Dataset:
    """Deployed as "net", of run "run"."""
    ds = write_patterns(store)
    Trainer(quick_config(), store, ds, run="run").fit()
    deploy(store, "run", "net")
    return ds


def again(store: Store, spec: str = "net", **options: str) -> Comparison:
    return reproduce(store, read_record(store, spec), World(), **options)  # type: ignore[arg-type]


def test_a_model_comes_out_equal_bit_for_bit_and_leaves_nothing_behind(store: Store, model: Dataset) -> None:
    before = {(ref.kind, ref.name, ref.branch, ref.commit) for ref in list_refs(store)}
    found = again(store)
    assert found.equal and found.equal_weights and found.equal_metrics and found.equal_receipt
    assert [why for why in found.why if "code" not in why] == [] and found.tensors == []
    assert found.weights == checkpoint_digest(checkpoints.load(store, "run"))
    assert {(ref.kind, ref.name, ref.branch, ref.commit) for ref in list_refs(store)} == before


def test_a_checkpoint_in_mid_epoch_of_an_interrupted_run_comes_out_equal(store: Store) -> None:
    ds = write_patterns(store)
    for steps in (3, 7):
        Trainer(quick_config(), store, ds, run="run").fit(max_steps=steps, resume=steps > 3)
    assert again(store, "run").equal and again(store, "run@7").record.step == 7


def test_neither_checkpoint_nor_the_head_of_the_branch_is_needed(store: Store, model: Dataset) -> None:
    for ref in list_refs(store, "checkpoint", "run"):
        delete_ref(store, "checkpoint", "run", ref.branch)
    write_patterns(store, train=60)
    assert read_record(store, "net").checkpoint is None
    assert again(store).equal


def test_what_an_interrupted_reproduction_left_does_not_matter(store: Store, model: Dataset) -> None:
    scratch = again(store).run
    Trainer(quick_config(seed=9), store, model, run=scratch).fit(max_steps=2)
    assert again(store).equal


def test_kept_by_name(store: Store, model: Dataset) -> None:
    found = again(store, keep="mine")
    assert found.equal and checkpoints.load(store, "mine").manifest["step"] == 15
    with pytest.raises(BadInput, match="'mine' has checkpoints already"):
        again(store, keep="mine")


def test_other_data_than_the_lineage_names_comes_out_otherwise_and_says_where(store: Store, model: Dataset) -> None:
    """As if something that the lineage does not name had changed: another seed stands for it."""
    record = read_record(store, "net")
    found = reproduce(store, dataclasses.replace(record, config=quick_config(seed=1)), World())
    assert not found.equal and not found.equal_weights and not found.equal_receipt
    assert found.changed > 0 and all(tensor.max_difference > 0 for tensor in found.tensors)
    assert found.weights != record.weights


def test_a_changed_environment_and_changed_code_are_named(store: Store, model: Dataset) -> None:
    record = read_record(store, "net")
    stored = {**record.environment, "torch": "1.0", "threads": 1}
    code = {**record.code, "leptonstore": "0.0.1"}
    found = reproduce(store, dataclasses.replace(record, environment=stored, code=code), World())
    assert found.equal
    assert any(why.startswith("torch was '1.0' and is") for why in found.why)
    assert any("leptonstore was '0.0.1'" in why for why in found.why)


def test_rows_that_were_chosen_by_other_code_are_refused(store: Store) -> None:
    ds = write_patterns(store, split=False)
    rows = ds.select(torch.arange(40).numpy())
    Trainer(quick_config(), store, rows, ds.select(torch.arange(40, 71).numpy()), run="run").fit()
    with pytest.raises(
        BadInput, match=r"the training rows of checkpoint run@.* chosen by code that its lineage does not name"
    ):
        again(store, "run")


def test_validation_rows_of_another_dataset_are_found(store: Store) -> None:
    train, held_out = write_patterns(store, "train", split=False), write_patterns(store, "held", 30, 0, split=False)
    Trainer(quick_config(), store, train, held_out, run="run").fit()
    assert again(store, "run").equal


def test_data_that_is_gone_is_named(store: Store, model: Dataset) -> None:
    delete_ref(store, "dataset", "patterns", "main")
    with pytest.raises(RefMissing, match="model net@main was trained on patterns"):
        again(store)


def test_what_cannot_be_reproduced_is_refused_by_name(store: Store, model: Dataset) -> None:
    record = read_record(store, "net")
    require_reproducible(record, 1)
    with pytest.raises(BadInput, match=r"not reproducible: model\.reference"):
        require_reproducible(dataclasses.replace(record, not_reproducible=["model.reference"]), 1)
    two = {**record.environment, "world_size": 2}
    with pytest.raises(BadInput, match="torchrun --nproc-per-node 2 --no-python lepton reproduce net"):
        require_reproducible(dataclasses.replace(record, environment=two, stretches=()), 1)
    stretches = [{"environment": {"world_size": size}} for size in (2, 3)]
    with pytest.raises(BadInput, match="by 2 and 3 ranks one after another"):
        require_reproducible(dataclasses.replace(record, stretches=stretches), 1)
    with pytest.raises(BadInput, match="nobody knows the weights"):
        require_reproducible(dataclasses.replace(record, weights=""), 1)
    with pytest.raises(BadInput, match="is a dataset"):
        read_record(store, "patterns")


def test_code_of_others_is_not_imported_unasked(store: Store) -> None:
    ds = write_patterns(store)
    config = quick_config(**{"model.reference": "training_data:own_model", "model.params": {}})
    Trainer(config, store, ds, run="run").fit(max_steps=2)
    record = read_record(store, "run")
    with pytest.raises(BadInput, match="confirm it with --model training_data:own_model"):
        require_confirmed(record, [])
    require_confirmed(record, ["training_data:own_model"])
    assert again(store, "run").equal


def test_the_command_says_equal_and_its_exit_code_does(store: Store, model: Dataset, tmp_path: Path) -> None:
    store.flush()
    place = ["--store", str(tmp_path / "store")]
    done = CliRunner().invoke(lepton, ["reproduce", "net", *place], standalone_mode=False)
    assert done.return_value == 0 and "equal bit for bit" in done.output, done.output
    told = json.loads(CliRunner().invoke(lepton, ["reproduce", "net", "--json", *place], standalone_mode=False).stdout)
    assert told["equal"] is True and told["weights"]["recorded"] == told["weights"]["here"]


def test_two_ranks_reproduce_two_ranks(tmp_path: Path) -> None:
    place, environment = tmp_path / "store", {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with Store.create(place, cache_dir=tmp_path / "cache") as store:
        write_patterns(store)
    config = quick_config()
    train_command(2, place, ["--run-name", "two", "--max-steps", "4", *quick_options(config)], environment)
    with (
        Store.open(place, cache_dir=tmp_path / "cache") as store,
        pytest.raises(BadInput, match="trained by 2 ranks, and here are 1"),
    ):
        require_reproducible(read_record(store, "two"), 1)
    code = "import sys; from leptonstore.cli import main; sys.argv[0] = 'lepton'; main()"
    script = tmp_path / "lepton.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += ["reproduce", "two", "--store", str(place), "--json"]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.strip().splitlines()[-1])
    assert told["equal"] is True and len(done.stdout.strip().splitlines()) == 1


def test_a_fine_tuned_model_begins_with_the_same_checkpoint_again(store: Store, model: Dataset) -> None:
    Trainer(quick_config(model__init="run", model__freeze=["network.conv"], epochs=1), store, model, run="tuned").fit()
    assert read_record(store, "tuned").init["commit"] == checkpoints.load(store, "run").commit
    assert again(store, "tuned").equal
    for ref in list_refs(store, "checkpoint", "run"):
        delete_ref(store, "checkpoint", "run", ref.branch)
    with pytest.raises(RefMissing, match="run"):
        again(store, "tuned")


# -- the digest --------------------------------------------------------------------------------------------------------


def test_the_digest_of_weights_is_of_names_dtypes_shapes_and_bits() -> None:
    plain = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0)}
    base = weights_digest(plain)
    assert weights_digest({"b": plain["b"], "a": plain["a"].t().contiguous().t()}) == base, "neither order nor strides"
    negative = torch.where(plain["a"] == 0, -plain["a"], plain["a"])
    others = [
        {"a": plain["a"], "c": plain["b"]},
        {"a": plain["a"].reshape(3, 2), "b": plain["b"]},
        {"a": plain["a"].double(), "b": plain["b"]},
        {"a": negative, "b": plain["b"]},
        {"a": plain["a"]},
    ]
    assert torch.equal(negative, plain["a"]), "zero and minus zero are equal, and not the same bits"
    assert len({base, *map(weights_digest, others)}) == 1 + len(others)
