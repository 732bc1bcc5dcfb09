from typing import Any

import pytest
from pydantic import ValidationError

from distributed.config import OptimizerConfig, ZeroConfig
from distributed.zero import _deepspeed_config

STAGES = (0, 1, 2, 3)


def config_of(precision: str = "fp32", **fields: Any) -> dict[str, Any]:
    optimizer = OptimizerConfig(
        precision=precision,  # type: ignore[arg-type]
        max_grad_norm=1.5,
        micro_batch_rows=4,
    )
    return _deepspeed_config(ZeroConfig(**fields), optimizer, 3)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"stage": 4}, "stage"),
        ({"stage": -1}, "stage"),
        ({"stage": 0, "offload_optimizer": True}, "zero.offload_optimizer"),
        ({"stage": 2, "offload_param": True}, "zero.offload_param"),
        ({"advanced": {"stage": 1}}, "zero.advanced"),
        ({"advanced": {"sub_group_size": "large"}}, "advanced.sub_group_size"),
        ({"grad_dtype": "fp16"}, "grad_dtype"),
        ({"offload": True}, "offload"),
    ],
)
def test_errors_name_the_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ZeroConfig.model_validate(fields)
    problem = caught.value.errors()[0]
    assert named in ".".join(map(str, problem["loc"])) + " " + problem["msg"]


@pytest.mark.parametrize("stage", STAGES)
def test_what_deepspeed_is_told(stage: int) -> None:
    config = config_of(stage=stage)
    assert config["zero_optimization"] == {"stage": stage, "memory_efficient_linear": False}
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 1.5
    assert config["zero_force_ds_cpu_optimizer"] is False
    assert "bf16" not in config and "fp16" not in config and "data_types" not in config


def test_bf16_offload_and_gradients_in_fp32() -> None:
    config = config_of("bf16", stage=1, offload_optimizer=True, grad_dtype="fp32")
    assert config["bf16"] == {"enabled": True}
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}


def test_offloaded_parameters() -> None:
    zero = config_of(stage=3, offload_param=True)["zero_optimization"]
    assert zero["offload_param"] == {"device": "cpu"} and "offload_optimizer" not in zero


def test_advanced_keys_reach_deepspeed_with_their_types() -> None:
    advanced = {"sub_group_size": 1000, "round_robin_gradients": True, "ratio": 0.5}
    given = ZeroConfig(stage=3, advanced=advanced)
    assert {k: type(v) for k, v in given.advanced.items()} == {
        "sub_group_size": int,
        "round_robin_gradients": bool,
        "ratio": float,
    }
    zero = config_of(stage=3, advanced=advanced)["zero_optimization"]
    assert advanced.items() <= zero.items()


def test_deepspeed_accepts_every_stage() -> None:
    """Its own configuration class knows each key that we write: an unknown one would be ignored."""
    from distributed.zero import import_deepspeed

    import_deepspeed("cpu")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for stage in STAGES:
        for offload in (False, True) if stage else (False,):
            ours = config_of(stage=stage, offload_optimizer=offload)["zero_optimization"]
            assert set(ours) <= set(DeepSpeedZeroConfig.model_fields)
            assert int(DeepSpeedZeroConfig(**ours).stage) == stage
