"""TrainConfig: one tree, written and read exactly, with errors that say what to change."""

from __future__ import annotations

import json

import pytest

from leptonstore.errors import BadInput, FormatDamaged
from trainers.config import (
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    first_difference,
    from_dict,
    from_json,
    identity,
    resolve,
    to_dict,
    to_json,
    with_values,
)
from trainers.recipe import default_batch_size, default_config
from trainers.schedule import factor_at


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
    with pytest.raises(BadInput, match=r"did you mean 'optimizer'"):
        with_values(TrainConfig(), {"optimiser.lr": 0.5})
    with pytest.raises(BadInput, match=r"optimizer.lrr"):
        with_values(TrainConfig(), {"optimizer.lrr": 0.5})


def test_identity_is_what_changes_the_numbers() -> None:
    elsewhere = with_values(TrainConfig(), {"threads": 7, "device": "cpu", "checkpoint.every_steps": 5})
    assert identity(elsewhere) == identity(TrainConfig())
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
