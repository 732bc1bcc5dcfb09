"""Reject DeepSpeed settings whose fp32 masters `Partition` cannot locate."""

from typing import Any

from distributed.errors import BadInput

# Where DeepSpeed's optimizers keep the parameters of their groups. One that is not here is the
# caller's own, at stage 0 in fp32.
_GROUPS = {
    "DeepSpeedZeroOptimizer": "bit16_groups",
    "BF16_Optimizer": "bf16_groups",
    "DeepSpeedZeroOptimizer_Stage3": "fp16_groups",
    "FP16_UnfusedOptimizer": "fp16_groups",
}


def check_supported(engine: Any) -> None:
    """Refuse a DeepSpeed engine whose masters are elsewhere, or are updated by other code.

    Raises:
        BadInput: naming the setting of DeepSpeed's configuration to change.
    """
    offload = engine.zero_offload_optimizer()
    offload_param = engine.zero_offload_param()
    refused = {
        "zero_optimization.zenflow": bool(engine.zenflow),
        "zero_optimization.offload_optimizer.super_offload": bool(engine.super_offload()),
        "zero_optimization.offload_optimizer.device nvme": _is_nvme(offload),
        "zero_optimization.offload_optimizer.ratio below 1": engine.zero_partial_offload() < 1,
        "zero_optimization.offload_param.device nvme": _is_nvme(offload_param),
        "zero_optimization.zero_hpz_partition_size above 1": engine.zero_hpz_partition_size() > 1,
        "zero_optimization.mics_shard_size": "MiCS" in type(engine.optimizer).__name__,
        "zero_optimization.zero_quantized_weights": bool(engine.zero_quantized_weights()),
        "fp16.fp16_master_weights_and_grads": bool(engine.fp16_master_weights_and_gradients()),
        "bf16.bf16_master_weights_and_grads": bool(engine.bf16_master_weights_and_gradients()),
        # Without it an accumulation's end is not known before the step.
        "managed_gradient_accumulation false": not engine.managed_gradient_accumulation(),
        "compile.deepcompile": engine.is_deepcompile_enabled(),
        "tensor parallelism": engine.autotp_size() > 1 or engine.mp_world_size > 1,
        "sequence parallelism": engine.sequence_parallel_size > 1,
        "pipeline parallelism": "Pipeline" in type(engine).__name__,
        "experts (MoE) of their own parallel group": bool(engine.has_moe_layers),
    }
    for setting, is_used in refused.items():
        if is_used:
            raise BadInput(f"weights cannot be followed exactly under {setting}: switch it off")
    wrapper = type(engine.optimizer).__name__
    if wrapper not in _GROUPS and wrapper != type(engine.basic_optimizer).__name__:
        raise BadInput(
            f"masters of DeepSpeed's {wrapper} cannot be followed: use ZeRO stage 1 to 3, or "
            "give deepspeed.initialize an optimizer of torch's"
        )


def parameter_groups(engine: Any) -> list[list[Any]]:
    """The parameters that are trained, by the optimizer's groups; at stage 3 by sub-groups."""
    wrapper = type(engine.optimizer).__name__
    if wrapper in _GROUPS:
        return [list(group) for group in getattr(engine.optimizer, _GROUPS[wrapper])]
    groups = [group["params"] for group in engine.basic_optimizer.param_groups]
    return [[p for p in group if p.requires_grad] for group in groups]


def clip_norm(engine: Any) -> tuple[float, bool]:
    """The norm that DeepSpeed clips gradients to, 0 for none; whether its configuration says so.

    Where it does not, the default is in force: 1.0 since June 2026 (DeepSpeed#8068), 0 before.
    """
    return float(engine.gradient_clipping()), "gradient_clipping" in engine._config._param_dict


def _is_nvme(offload: Any) -> bool:
    return offload is not None and offload.device == "nvme"
