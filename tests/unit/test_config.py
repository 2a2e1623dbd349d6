"""TrainConfig: one tree, written and read exactly, with errors that say what to change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leptonstore.errors import BadInput, FormatDamaged, SourceError
from loaders.transforms import RandomCrop
from trainers.config import (
    DataConfig,
    EarlyStopConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    TransformConfig,
    first_difference,
    from_dict,
    from_json,
    identity,
    last_bits_warnings,
    require_trusted,
    resolve,
    to_dict,
    to_json,
    with_values,
)
from trainers.config_tree import read_toml
from trainers.recipe import default_batch_size, default_config
from trainers.schedule import build_schedule, factor_at
from trainers.transforms import build_transforms


def test_json_round_trip_is_exact_and_deterministic() -> None:
    config = TrainConfig(
        model=ModelConfig("trainers.models:cnn", {"hidden": 64, "channels": 8}),
        optimizer=OptimizerConfig("adamw", lr=0.1 + 0.2, betas=(0.8, 0.95)),
        epochs=3,
        threads=2,
    )
    assert from_json(to_json(config)) == config
    assert from_dict(to_dict(config)) == config
    same = TrainConfig(
        threads=2,
        epochs=3,
        optimizer=OptimizerConfig("adamw", betas=(0.8, 0.95), lr=0.1 + 0.2),
        model=ModelConfig("trainers.models:cnn", {"channels": 8, "hidden": 64}),
    )
    assert to_json(same) == to_json(config)


def test_absent_keys_take_their_defaults() -> None:
    assert from_dict({}) == TrainConfig()
    assert from_dict({"optimizer": {"lr": 1}}).optimizer.lr == 1.0


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"optimizer": {"learning_rate": 1}}, "optimizer.learning_rate"),
        ({"optimizer": {"betas": [0.9]}}, "list of 2"),
        ({"optimizer": {"name": "adan"}}, "did you mean 'adam'"),
        ({"schedule": {"name": "onecycle"}}, "did you mean 'one_cycle'"),
        ({"epochs": "five"}, "epochs must be of type int"),
        ({"epochs": True}, "epochs must be of type int"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"data": {"global_batch_size": 0}}, "data.global_batch_size is 0"),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr"),
        ({"optimizer": 3}, "optimizer must be an object"),
        ({"model": {"reference": "os.system"}}, "package.module:function"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"precision": "float16"}, "must be one of float32, bf16, fp16"),
        ({"optimizer": {"name": "sgd", "reference": "torch.optim:Rprop"}}, "optimizer.name is 'sgd'"),
        ({"optimizer": {"name": "custom"}}, "optimizer.name is 'custom'"),
        ({"optimizer": {"params": {"alpha": 1}}}, "empty without optimizer.reference"),
        ({"schedule": {"reference": "mine"}}, "package.module:function"),
        ({"data": {"transforms": {"image": [{"param": {}}]}}}, "data.transforms.image.0.param"),
        ({"data": {"transforms": {"image": [{"params": {}}]}}}, "data.transforms.image.0 needs reference"),
        ({"data": {"workers": "automatic"}}, "did you mean 'auto'"),
        ({"data": {"workers": -1}}, "data.workers is -1"),
        ({"early_stop": {"patience": 0}}, "early_stop.patience is 0"),
        ({"early_stop": 3}, "early_stop must be an object"),
        ({"checkpoint": {"keep_evry": 5}}, "did you mean 'keep_every'"),
        ({"clip_norm": 0}, "clip_norm is 0"),
        ({"parallel": {"mesh": {"data": 0}}}, "parallel.mesh.data is 0"),
        ({"parallel": {"mesh": {"data": "two"}}}, "parallel.mesh.data must be of type int"),
    ],
)
def test_a_wrong_key_or_value_is_named(tree: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput) as error:
        from_dict(tree)
    assert said in str(error.value)


def test_text_that_is_no_configuration() -> None:
    with pytest.raises(FormatDamaged):
        from_json("{")
    with pytest.raises(BadInput):
        from_json("[]")


def test_dotted_values_replace_keys() -> None:
    config = with_values(TrainConfig(), {"optimizer.lr": 0.5, "epochs": 2, "model.params.hidden": 32})
    assert (config.optimizer.lr, config.epochs, config.model.params) == (0.5, 2, {"hidden": 32})
    assert with_values(config, {"model.params": {"channels": 4}}).model.params == {"channels": 4}
    assert with_values(config, {"model": "a:b", "model.params.size": 1}).model == ModelConfig("a:b", {"size": 1})
    with pytest.raises(BadInput, match=r"epochs must be of type int"):
        with_values(TrainConfig(), {"epochs.lr": 1})
    with pytest.raises(BadInput, match=r"did you mean 'optimizer'"):
        with_values(TrainConfig(), {"optimiser.lr": 0.5})
    with pytest.raises(BadInput, match=r"optimizer.lrr"):
        with_values(TrainConfig(), {"optimizer.lrr": 0.5})


def test_a_toml_file_and_dotted_keys_build_the_same_tree(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
        epochs = 3
        clip_norm = 1
        model = "trainers.models:linear"
        early_stop.patience = 2
        [optimizer]
        name = "adamw"
        betas = [0.8, 0.95]
        [data.transforms]
        image = ["loaders.transforms:DecodeImage", {reference = "loaders.transforms:RandomCrop", params = {size = 8}}]
        """
    )
    crop = TransformConfig("loaders.transforms:RandomCrop", {"size": 8})
    expected = TrainConfig(
        model=ModelConfig("trainers.models:linear"),
        optimizer=OptimizerConfig("adamw", lr=0.5, betas=(0.8, 0.95)),
        data=DataConfig(transforms={"image": (TransformConfig("loaders.transforms:DecodeImage"), crop)}),
        early_stop=EarlyStopConfig(patience=2),
        epochs=4,
        clip_norm=1.0,
    )
    config = with_values(TrainConfig(), {**read_toml(path), "optimizer.lr": 0.5, "epochs": 4})
    assert config == expected == from_json(to_json(config))
    assert with_values(config, {"early_stop": None}).early_stop is None


@pytest.mark.parametrize(
    ("text", "said"), [("epochs =", "not TOML"), ("a = 1\na = 2", "not TOML"), (b"\xff", "not TOML")]
)
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput, match=said) as error:
        read_toml(path)
    assert str(path) in str(error.value)
    with pytest.raises(SourceError, match="no-such"):
        read_toml(tmp_path / "no-such.toml")


# -- objects -----------------------------------------------------------------------------------------------------------


class Doubled:
    """A callable without a name of its own."""

    def __call__(self, outputs: object, targets: object) -> object:
        return outputs


def own_loss(outputs: object, targets: object) -> object:
    return outputs


def test_a_function_is_written_down_by_its_name_and_found_again() -> None:
    config = TrainConfig(loss=LossConfig(own_loss))
    assert config.loss.reference == f"{__name__}:own_loss"
    assert resolve(config.loss.reference) is own_loss
    assert config.not_reproducible == []
    assert from_json(to_json(config)) == config


def test_a_transform_of_loaders_is_written_down_with_what_it_was_made_with() -> None:
    config = TransformConfig(RandomCrop(7))
    assert config.params["size"] == [7, 7]
    transforms = build_transforms({"image": [config, TransformConfig(f"{__name__}:shifted", {"by": 2})]})["image"]
    assert transforms[0].parameters() == RandomCrop(7).parameters()
    assert from_json(to_json(TrainConfig(data=DataConfig(transforms={"image": (config,)})))).data.transforms[
        "image"
    ] == (config,)
    assert transforms[1](1) == 3
    with pytest.raises(BadInput, match=r"transform of 'image' .*sise"):
        build_transforms({"image": [TransformConfig("loaders.transforms:RandomCrop", {"size": 7, "sise": 7})]})


def shifted(value: int, by: int = 0) -> int:
    return value + by


@pytest.mark.parametrize(
    "given", [lambda outputs, targets: outputs, Doubled(), Doubled], ids=["lambda", "instance", "local"]
)
def test_an_object_without_a_name_is_used_and_makes_the_run_not_reproducible_by_name(given: object) -> None:
    if given is Doubled:

        def given(outputs: object, targets: object) -> object:  # not found under its name in its module
            return outputs

    config = TrainConfig(loss=LossConfig(given), data=DataConfig(transforms={"image": (TransformConfig(Doubled()),)}))
    assert resolve(config.loss.reference) is given
    assert config.not_reproducible == ["loss", "data.transforms.image.0"]
    assert with_values(config, {"epochs": 2}).loss.reference is given
    stored = from_json(to_json(config))
    assert stored.not_reproducible == config.not_reproducible
    assert to_json(stored) == to_json(config)
    with pytest.raises(BadInput, match=r"was an object given in Python, .* give it again"):
        resolve(stored.loss.reference)


def test_parameters_that_cannot_be_written_down_are_refused_with_the_way_out() -> None:
    with pytest.raises(BadInput, match=r"model.params must be JSON: .* as the reference"):
        ModelConfig("trainers.models:cnn", {"activation": Doubled()})


@pytest.mark.parametrize("key", ["model", "loss", "optimizer", "schedule", "data.transforms.image.0"])
def test_code_outside_of_the_project_is_not_followed_on_the_word_of_a_stored_configuration(key: str) -> None:
    values = {"data.transforms": {"image": ["os:system"]}} if key.startswith("data") else {key: "os:system"}
    stored = with_values(TrainConfig(), values)
    with pytest.raises(BadInput, match=f"run 'x' trained with {key}.reference 'os:system', code outside"):
        require_trusted(stored, TrainConfig(), "run 'x'")
    require_trusted(stored, with_values(TrainConfig(), values), "run 'x'")
    require_trusted(
        from_dict({"optimizer": "torch.optim:Rprop", "model": "trainers.models.cnn:cnn"}), TrainConfig(), "run 'x'"
    )


def test_a_reference_that_is_none_is_told_by_the_key_that_holds_it() -> None:
    with pytest.raises(BadInput, match=r"^loss\.reference: 'my loss' is not of the form"):
        LossConfig(reference="my loss")


def test_identity_is_what_changes_the_numbers() -> None:
    elsewhere = with_values(TrainConfig(), {"threads": 7, "device": "cpu", "checkpoint.every_steps": 5})
    assert identity(elsewhere) == identity(TrainConfig())
    saving = with_values(
        TrainConfig(), {"accumulate": 4, "recompute": True, "data.workers": 2, "evaluate_every_steps": 3}
    )
    assert identity(saving) == identity(TrainConfig())
    assert [line.split()[0] for line in last_bits_warnings(TrainConfig(), saving)] == ["accumulate", "recompute"]
    watched = with_values(saving, {"early_stop.patience": 2})
    assert identity(watched) != identity(with_values(watched, {"evaluate_every_steps": 4}))
    other = with_values(TrainConfig(), {"optimizer.lr": 0.5})
    said = first_difference(identity(TrainConfig()), identity(other))
    assert said == "optimizer.lr is 0.003 in the checkpoint and 0.5 here"


def test_resolve_finds_a_function_or_says_which_part_is_wrong() -> None:
    assert resolve("json:dumps") is json.dumps
    for reference, said in (
        ("json", "package.module:function"),
        ("no_such_package.models:cnn", "cannot import"),
        ("json:dump_s", "did you mean 'dumps'"),
        ("json:__name__", "not a function"),
        ("trainers.schedule:resolve", "'resolve' is not of trainers.schedule, but of trainers.reference"),
    ):
        with pytest.raises(BadInput, match=said):
            resolve(reference)


def test_the_recipe_follows_the_number_of_rows() -> None:
    assert [default_batch_size(rows) for rows in (10, 1_440, 5_000, 60_000)] == [16, 16, 64, 128]
    assert default_config(60_000).epochs == 5
    assert default_config(1_440, epochs=2, seed=9).epochs == 2
    with pytest.raises(BadInput):
        default_config(1_440, batch_size=0)


def test_schedules_start_peak_and_end_where_they_say() -> None:
    steps = 100
    one_cycle = ScheduleConfig()
    factors = [factor_at(one_cycle, step, steps) for step in range(steps)]
    assert factors[0] == one_cycle.start_factor
    assert max(factors) == factors[30] == 1.0
    assert factors[-1] < 0.01
    assert factor_at(ScheduleConfig("cosine"), 0, steps) == 1.0
    assert factor_at(ScheduleConfig("cosine"), steps, steps) == pytest.approx(0.001)
    assert {factor_at(ScheduleConfig("constant"), step, steps) for step in range(steps)} == {1.0}
    assert factor_at(one_cycle, 0, 1) > 0  # a run of one step
    linear = ScheduleConfig("linear", warmup=0.1, start_factor=0.5, end_factor=0)
    assert [factor_at(linear, step, steps) for step in (0, 5, 10, 55, 100)] == pytest.approx([0.5, 0.75, 1.0, 0.5, 0.0])
    assert factor_at(ScheduleConfig("constant", warmup=0.1), 5, steps) == pytest.approx(0.52)


def halving(step: int, steps: int, every: int = 10) -> float:
    return 0.5 ** (step // every)


def broken(step: int, steps: int) -> float:
    return float("nan")


def test_a_schedule_of_ones_own_is_asked_by_step() -> None:
    factor = build_schedule(ScheduleConfig(reference=halving, params={"every": 2}), 100)
    assert [factor(step) for step in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]
    with pytest.raises(BadInput, match="does not take these parameters"):
        build_schedule(ScheduleConfig(reference=halving, params={"evry": 2}), 100)
    with pytest.raises(BadInput, match=r"broken gave nan at step 3 of 9"):
        build_schedule(ScheduleConfig(reference=f"{__name__}:broken"), 9)(3)
