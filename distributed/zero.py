"""One training engine: DeepSpeed at ZeRO stage 0 to 3, with exact fp32 starts and exact averaging.

The only file that spells DeepSpeed's configuration keys.
"""

import difflib
import gc
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from distributed.config import OptimizerConfig, ZeroConfig
from distributed.errors import BadInput
from distributed.imports import without_collector
from distributed.partition import NamedParameters, Partition


class Engine:
    """The few verbs that the training loop needs; DeepSpeed's engine is `deepspeed_engine`."""

    def __init__(self, deepspeed_engine: Any, partition: Partition) -> None:
        self.deepspeed_engine = deepspeed_engine
        self.partition = partition
        self._grad_norm: torch.Tensor | float | None = None
        # Only here does DeepSpeed update without looking at the gradients' norm.
        self._checks_finiteness = deepspeed_engine.optimizer is deepspeed_engine.basic_optimizer

    @property
    def device(self) -> torch.device:
        """Where inputs are expected."""
        return torch.device(self.deepspeed_engine.device)

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        self.deepspeed_engine.train(mode)

    def forward(self, **batch: Any) -> Any:
        """Collective: call the module; at stage 3 that gathers weights as it goes."""
        return self.deepspeed_engine(**batch)

    def backward(self, loss: torch.Tensor) -> None:
        """Collective: accumulate gradients of `loss`, this rank's share of the global loss.

        DeepSpeed averages gradients over the ranks and divides by the accumulation steps. The
        shares add up to the global loss, so the average is undone by the world size and the
        division is off.
        """
        engine = self.deepspeed_engine
        engine.backward(loss * self.partition.world_size, scale_wrt_gas=False)
        if not engine.is_gradient_accumulation_boundary():
            engine.step()  # only counts the micro-step

    def step(self, learning_rate: float) -> bool:
        """Collective: clip and update; whether the update was applied, alike on all ranks.

        A non-finite gradient anywhere makes the norm non-finite everywhere: nothing is updated
        then.
        """
        for group in self.deepspeed_engine.basic_optimizer.param_groups:
            group["lr"] = learning_rate
        if self._checks_finiteness:
            # Stage 0 in fp32: gradients are already averaged, so all ranks compute the same norm.
            grads = [
                p.grad for p in self.deepspeed_engine.module.parameters() if p.grad is not None
            ]
            norm = torch.nn.utils.get_total_norm(grads)
            self._grad_norm = norm
            if not torch.isfinite(norm):
                self.deepspeed_engine.zero_grad()
                self.deepspeed_engine.micro_steps += 1
                return False
        self.deepspeed_engine.step()
        if not self._checks_finiteness:
            self._grad_norm = self.deepspeed_engine.get_global_grad_norm()
        return bool(self.deepspeed_engine.was_step_applied())

    def grad_norm(self) -> float:
        """The gradient's 2-norm over all weights at the last step, before clipping."""
        return float("nan") if self._grad_norm is None else float(self._grad_norm)


def build_engine(
    module: torch.nn.Module,
    *,
    named_parameters: NamedParameters,
    no_decay: Sequence[str],
    optimizer: OptimizerConfig,
    zero: ZeroConfig,
    accumulation_steps: int,
    device: torch.device,
) -> Engine:
    """Collective: wrap `module`, whose weights are set, in a DeepSpeed engine with AdamW.

    The masters are still rounded to the precision and the optimizer may have counted a step: the
    caller writes both (`Partition.write_masters`, `write_moments`) before training.

    Args:
        module: the plain module, on any device; building it inside deepspeed.zero.Init fails with
            transformers 5.
        named_parameters: canonical name and parameter of every weight, tied ones once.
        no_decay: names that weight decay leaves alone.
        optimizer: AdamW's settings; its precision is of the weights that the forward reads.
        zero: stage and options.
        accumulation_steps: forwards a step.
        device: where to train; one kind a process.
    """
    deepspeed = import_deepspeed(device.type)
    # DeepSpeed's engines are in cycles: one that is done with keeps its memory until this.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    plain = set(no_decay)
    groups = [
        {
            "params": [p for n, p in named_parameters if n not in plain],
            "weight_decay": optimizer.weight_decay,
        },
        {"params": [p for n, p in named_parameters if n in plain], "weight_decay": 0.0},
    ]
    # Learning rate 0 until the first step: at stage 0 in bf16, `initialize` takes an update.
    adam = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=optimizer.betas,
        eps=optimizer.adam_eps,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=adam,
        config=_deepspeed_config(zero, optimizer, accumulation_steps),
    )
    return Engine(engine, Partition(engine, named_parameters))


def _deepspeed_config(
    zero: ZeroConfig, optimizer: OptimizerConfig, accumulation_steps: int
) -> dict[str, Any]:
    zero_optimization: dict[str, Any] = {
        "stage": zero.stage,
        # Stage 3 otherwise replaces torch.nn.functional.linear for the whole process, for good.
        "memory_efficient_linear": False,
        **zero.advanced,
    }
    if zero.offload_optimizer:
        zero_optimization["offload_optimizer"] = {"device": "cpu"}
    if zero.offload_param:
        zero_optimization["offload_param"] = {"device": "cpu"}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": optimizer.micro_batch_rows,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": optimizer.max_grad_norm,
        "zero_optimization": zero_optimization,
        # Our optimizer is torch's, with offload too: one optimizer everywhere.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
        # It would wait for the GPU twice a batch.
        "timers": {"throughput": {"enabled": False}},
    }
    if optimizer.precision == "bf16":
        config["bf16"] = {"enabled": True}
    if zero.grad_dtype is not None:
        config["data_types"] = {"grad_accum_dtype": zero.grad_dtype}
    return config


def check_advanced(zero: ZeroConfig) -> None:
    """Refuse keys of `zero.advanced` that DeepSpeed does not know; workers would find out late.

    Raises:
        BadInput: naming the nearest key that there is.
    """
    if not zero.advanced:
        return
    # For the device of this process's training, if it trains: what is imported first decides.
    is_on_gpu = dist.is_initialized() and dist.get_backend() == "nccl"
    import_deepspeed("cuda" if is_on_gpu else "cpu")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    known = {*fields, *(f.alias for f in fields.values() if f.alias)}
    for key in zero.advanced:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise BadInput(f"zero.advanced has {key}, which DeepSpeed does not know{hint}")


def import_deepspeed(device_type: str) -> Any:
    """Import DeepSpeed, quiet, for "cpu" or "cuda"; it takes seconds, so only this imports it.

    Raises:
        RuntimeError: this process has imported it for the other one.
    """
    os.environ["DS_ACCELERATOR"] = device_type
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed reads them even for one process; it stops where Open MPI has another local rank.
    local_rank = os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0")
    for name, default in (("RANK", "0"), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", "1")):
        os.environ.setdefault(name, default)
    with without_collector():
        import deepspeed
        import deepspeed.ops
        from deepspeed.accelerator import get_accelerator

        _import_muon()

    if get_accelerator().device_name() != device_type:
        raise RuntimeError(f"DeepSpeed was imported for another device than {device_type} before")
    if device_type == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce at the first start (a minute), and take
        # all ranks to be on one machine where LOCAL_SIZE is not set, as under Ray. Gloo does the
        # work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    return deepspeed


def _import_muon() -> None:
    """Import DeepSpeed's Muon without its compiler.

    Engines import this optimizer, which none of ours uses, and it calls torch.compile when it is
    imported: 540 modules of torch's compiler, and a start of gcc.
    """
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401 (engines find it imported)
    except ImportError:  # another version's
        pass
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before
