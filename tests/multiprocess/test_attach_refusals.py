"""What `attach` cannot prune as asked is refused by name; what it leaves dense, it says and why."""

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from distributed.errors import BadInput
from distributed.zero import import_deepspeed
from sparsity.attach import attach, find_linear_weights
from sparsity.controller import SparsityController
from sparsity.schedule import SparsityConfig, SparsityGroup
from tests.multiprocess import pool
from tests.unit.sparsity.oracle import expected_digest, expected_keep

HALF = SparsityConfig(schedule="one_shot", final_sparsity=0.5)
LATER = SparsityConfig(schedule="one_shot", final_sparsity=0.9, prune_start_step=2)
CASES = [(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]


class Net(nn.Module):
    """Three layers a, b, c; `build` makes each of them."""

    def __init__(self, build: Callable[..., nn.Module] = nn.Linear) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.a, self.b, self.c = build(12, 20), build(20, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.b(torch.tanh(self.a(x.to(self.c.bias.dtype)))))
        return nn.functional.cross_entropy(self.c(hidden).float(), y)


class LoRA(nn.Module):
    """As peft makes it: a frozen base layer and two matrices, the second all zero at first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, outputs, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))
        return out


class Conv1D(nn.Module):
    """transformers' layer by this name, and by this shape of its weight."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class QuantizedLinear(nn.Linear):
    """As of bitsandbytes: integers that nobody trains."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        integers = torch.zeros(outputs, inputs, dtype=torch.int8)
        self.weight = nn.Parameter(integers, requires_grad=False)


class OurLinear(nn.Linear):
    """A subclass is an nn.Linear."""


def make_engine(
    model: nn.Module,
    params: Any = None,
    *,
    stage: int = 2,
    precision: str = "fp32",
    **config: Any,
) -> Any:
    deepspeed = import_deepspeed("cpu")
    chosen = [p for p in model.parameters() if p.requires_grad] if params is None else params
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(chosen, lr=1e-2, weight_decay=0.0),
        config={
            "train_micro_batch_size_per_gpu": 4,
            "zero_optimization": {
                "stage": stage,
                "memory_efficient_linear": False,
                "stage3_param_persistence_threshold": 0,
            },
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 62,
            precision: {"enabled": True},
        }
        | config,
    )
    return engine


def train(engine: Any, sparsity: SparsityController | None, steps: int) -> None:
    for step in range(steps):
        if sparsity is not None:
            sparsity.update(step)
        generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
        x = torch.randn(4, 12, generator=generator)
        engine.backward(engine(x, torch.randint(0, 4, (4,), generator=generator)))
        engine.step()


def masters(sparsity: SparsityController, name: str) -> np.ndarray:
    """Collective: a whole parameter from the owned parts."""
    partition = sparsity._partition
    total = torch.zeros(partition.numels[name], dtype=torch.float64)
    for f in partition.fragments:
        if f.name == name:
            total[f.owned_start : f.owned_stop] = partition.master(f)[f.owned].double()
    dist.all_reduce(total)
    return total.numpy().astype(np.float32)


def refused(engine: Any, config: SparsityConfig = HALF, prunable: list[str] | None = None) -> str:
    try:
        attach(engine, config, prunable=prunable)
    except BadInput as error:
        assert "\n" not in str(error)
        return str(error)
    return "nothing"


class Listener(logging.Handler):
    """What attach and the controller log, with its level."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self._logger = logging.getLogger("sparsity")
        self._level = self._logger.level
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(f"{record.levelname} {record.getMessage()}")

    def stop(self) -> list[str]:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)
        return self.said


# What is trained.


def of_b_and_c(model: Net) -> list[nn.Parameter]:
    return [*model.c.parameters(), *model.b.parameters()]


def forgotten(stage: int, precision: str) -> list[str]:
    model = Net()
    engine = make_engine(model, of_b_and_c(model), stage=stage, precision=precision)
    return [refused(engine), refused(engine, prunable=["b.weight", "a.weight"])]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_parameter_that_no_group_holds_is_named(world_size: int) -> None:
    for case in CASES:
        for unasked, named in pool.run(world_size, forgotten, *case):
            assert unasked.startswith(
                "a.weight is in no parameter group of the optimizer, so it is not trained (nor is "
                "a.bias): add it to a group, freeze it"
            ), (case, unasked)
            assert named == (
                "a.weight is to be pruned, but it is in no parameter group of the optimizer, so it "
                "is not trained: add it to a group"
            ), (case, named)


def what_is_held(stage: int, precision: str) -> tuple[str, str, float, list[str]]:
    """Prune b alone where no group holds a: digest, the oracle's, share of zeros, the log."""
    model = Net()
    engine = make_engine(model, of_b_and_c(model), stage=stage, precision=precision)
    listener = Listener()
    sparsity = attach(engine, HALF, prunable=["b.weight"])
    said = listener.stop()
    keep = expected_keep({"b.weight": masters(sparsity, "b.weight")}, 20 * 16 // 2)
    train(engine, sparsity, 3)
    assert sparsity.find_violation() is None
    assert sparsity.total_numel == 20 * 16 + 16 + 16 * 4 + 4  # and nothing of a
    zeros = float((masters(sparsity, "b.weight") == 0).mean())
    return sparsity.state.digest, expected_digest(keep), zeros, said


def test_what_the_groups_hold_is_pruned_and_the_rest_is_told() -> None:
    for precision in ("fp32", "bf16"):
        digests = set()
        for world_size in (1, 2, 3):
            for stage in (0, 1, 2, 3):
                answers = pool.run(world_size, what_is_held, stage, precision)
                for rank, (digest, want, zeros, said) in enumerate(answers):
                    digests |= {digest, want}
                    assert zeros == 0.5
                    told = "WARNING not trained, as no parameter group of the optimizer holds it: "
                    assert (f"{told}a.weight, a.bias" in said) == (rank == 0)
        assert len(digests) == 1


def frozen_later(stage: int, precision: str) -> tuple[list[str], float]:
    """A parameter that was frozen between `initialize` and `attach` lies in the masters all the
    same.
    """
    model = Net()
    engine = make_engine(model, stage=stage, precision=precision)
    model.a.requires_grad_(False)
    sparsity = attach(engine, HALF)
    train(engine, sparsity, 2)
    assert sparsity.find_violation() is None
    names = list(sparsity.state.pruned)
    whole = np.concatenate([masters(sparsity, name) for name in names])
    return names, float((whole == 0).mean())


def test_a_parameter_that_was_frozen_later_is_left_out() -> None:
    for world_size in (1, 2):
        for case in CASES:
            for names, zeros in pool.run(world_size, frozen_later, *case):
                assert names == ["b.weight", "c.weight"] and zeros == 0.5, case


def empty_and_foreign() -> list[str]:
    """A parameter without elements, which DeepSpeed leaves out; an optimizer of another module."""
    model = Net()
    model.nothing = nn.Parameter(torch.zeros(0, 3))
    pruned = [
        ",".join(attach(make_engine(model, stage=stage, precision=precision), HALF).state.pruned)
        for stage, precision in [(0, "fp32"), (0, "bf16"), (2, "fp32")]
    ]
    other = list(nn.Linear(3, 3).parameters())
    return [*pruned, refused(make_engine(Net(), other, stage=0))]


def test_what_is_empty_is_not_missed_and_what_is_foreign_is_told() -> None:
    (answers,) = pool.run(1, empty_and_foreign)
    assert answers[:3] == ["a.weight,b.weight,c.weight"] * 3
    assert answers[3] == "the optimizer's parameter groups hold no parameter of the engine's module"


# The clip norm.


def clip_norms() -> list[list[str]]:
    said = []
    for config in ({}, {"gradient_clipping": 0.5}, {"gradient_clipping": 0.0}):
        for stage in (0, 2):
            listener = Listener()
            attach(make_engine(Net(), stage=stage, **config), HALF)
            said.append([line for line in listener.stop() if "gradients are" in line])
    return said


def test_the_clip_norm_in_force_is_told() -> None:
    first, second = pool.run(2, clip_norms)
    assert second == [[]] * 6, "one rank says it"
    from deepspeed.runtime.constants import GRADIENT_CLIPPING_DEFAULT

    default = (
        f"WARNING gradients are clipped to a norm of {GRADIENT_CLIPPING_DEFAULT:g}, the default of "
        "DeepSpeed: set gradient_clipping, 0 for none"
    )
    assert first[:2] == [[default]] * 2
    assert first[2:4] == [["INFO gradients are clipped to a norm of 0.5"]] * 2
    assert first[4:] == [["INFO gradients are not clipped"]] * 2


# Weights that are computed.

COMPUTED: dict[str, tuple[Callable[[nn.Linear], Any], str, str]] = {
    "prune": (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        r"weight_orig \(torch's prune\)",
        "prune.remove",
    ),
    "weight_norm": (
        parametrizations.weight_norm,
        r"original0 and parametrizations.weight.original1 .*WeightNorm",
        "parametrize.remove_parametrizations",
    ),
    "spectral_norm": (
        parametrizations.spectral_norm,
        "original .*SpectralNorm",
        "parametrize.remove_parametrizations",
    ),
    "orthogonal": (
        parametrizations.orthogonal,
        "original .*Orthogonal",
        "parametrize.remove_parametrizations",
    ),
    "old weight_norm": (
        weight_norm,
        r"weight_g and weight_v \(torch's weight_norm\)",
        "remove_weight_norm",
    ),
    "old spectral_norm": (
        spectral_norm,
        r"weight_orig \(torch's spectral_norm\)",
        "remove_spectral_norm",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def computed(kind: str, stage: int) -> dict[str, Any]:
    def build() -> Net:
        model = Net()
        COMPUTED[kind][0](model.a)
        return model

    engine = make_engine(build(), stage=stage)
    told = [refused(engine), refused(engine, prunable=["a.weight"])]
    listener = Listener()
    attach(engine, HALF, prunable=["b.weight", "c.weight"])
    quiet = listener.stop()
    frozen = build()
    frozen.a.requires_grad_(False)
    sparsity = attach(make_engine(frozen, stage=stage), HALF)
    model = build()
    source = next(n for n, _ in model.named_parameters() if n.startswith("a.") and n != "a.bias")
    listener = Listener()
    attach(make_engine(model, stage=stage), HALF, prunable=[source])
    return {
        "told": told,
        "quiet": [line for line in quiet if "computed" in line],
        "frozen": list(sparsity.state.pruned),
        "source": source,
        "said": [line for line in listener.stop() if "computed" in line],
    }


@pytest.mark.parametrize("kind", list(COMPUTED))
def test_a_weight_that_is_computed_is_refused(kind: str) -> None:
    for world_size, stage in [(1, 0), (2, 1), (2, 2), (3, 3)]:
        for rank, answer in enumerate(pool.run(world_size, computed, kind, stage)):
            unasked, named = answer["told"]
            sources, remover = COMPUTED[kind][1:]
            remedy = rf"torch.nn.utils.{re.escape(remover)}\(a, 'weight'\)"
            assert re.match(
                f"a.weight is no parameter, as each forward computes it from .*{sources}.*: "
                f"call {remedy} before deepspeed.initialize, or name what to prune with prunable=",
                unasked,
            ), unasked
            assert re.match(
                f"a.weight is to be pruned, but it is no parameter, as .*{sources}.*{remedy}", named
            ), named
            # The other layers are pruned as ever, and so is what is named.
            assert answer["quiet"] == []
            assert answer["frozen"] == ["b.weight", "c.weight"]
            said = f"WARNING {answer['source']} is pruned, and the forward reads a.weight, "
            assert answer["said"] == ([f"{said}computed from it"] if rank == 0 else [])


def undone() -> list[str]:
    """Of a layer of its own, of a root, of a compiled one, and after the remedy."""
    root = prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)
    bias = Net()
    prune.l1_unstructured(bias.a, "bias", 0.5)
    parametrizations.weight_norm(bias.b, "bias", dim=None)
    wrapped = Net()
    parametrizations.weight_norm(wrapped.a)
    wrapped.a = torch.compile(wrapped.a)
    mended = Net()
    prune.l1_unstructured(mended.a, "weight", 0.5)
    prune.remove(mended.a, "weight")
    return [
        refused(make_engine(root)),
        ",".join(find_linear_weights(bias)),
        refused(make_engine(wrapped)),
        refused(make_engine(mended)),
    ]


def test_a_weight_that_is_a_parameter_again_is_pruned() -> None:
    (answers,) = pool.run(1, undone)
    assert answers[0].startswith("weight is no parameter, as each forward computes it")
    assert "torch.nn.utils.prune.remove(model, 'weight')" in answers[0]
    assert answers[1] == "a.weight,b.weight,c.weight"
    assert answers[2].startswith("a.weight is no parameter, as each forward computes it")
    assert "remove_parametrizations(a._orig_mod, 'weight')" in answers[2]
    assert answers[3] == "nothing"


# Parameters that would be pruned whole.


def adapters(stage: int, precision: str) -> dict[str, Any]:
    def engine() -> Any:
        return make_engine(Net(LoRA), stage=stage, precision=precision)

    found: dict[str, Any] = {"told": refused(engine())}
    # Pruning begins later: they may learn until then, and must.
    learning = engine()
    listener = Listener()
    sparsity = attach(learning, LATER)
    found["warned"] = [line for line in listener.stop() if "all weights are zero" in line]
    try:
        train(learning, sparsity, 4)
        found["late"] = "nothing"
    except BadInput as error:
        found["late"] = str(error)
    # Under these nothing is pruned whole: half of every matrix, half of four, none of B.
    for kind, config in {
        "per_tensor": HALF.model_copy(update={"scope": "per_tensor"}),
        "2:4": HALF.model_copy(update={"pattern": "2:4"}),
        "groups": HALF.model_copy(
            update={"groups": [SparsityGroup(match="*lora_B*", final_sparsity=0)]}
        ),
    }.items():
        found[kind] = refused(engine(), config)
    # Named, and pruned before it has learned.
    names = ["a.lora_A.default.weight", "a.lora_B.default.weight"]
    at_once = LATER.model_copy(update={"prune_start_step": 0})
    sparsity = attach(engine(), at_once, prunable=names)
    try:
        sparsity.update(0)
        found["update"] = "nothing"
    except BadInput as error:
        found["update"] = str(error)
    # Named, and pruned after it has learned.
    learning = engine()
    sparsity = attach(learning, LATER, prunable=names)
    listener = Listener()
    train(learning, sparsity, 4)
    found["whole"] = [line for line in listener.stop() if "pruned whole" in line]
    found["densities"] = sparsity.densities()
    found["violation"] = sparsity.find_violation()
    # What has learned something is pruned unasked as well.
    learned = engine()
    train(learned, None, 2)
    found["unasked"] = list(attach(learned, HALF).state.pruned)
    return found


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_adapter_that_is_zero_is_not_pruned_before_it_has_learned(world_size: int) -> None:
    for case in [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "bf16")]:
        for rank, found in enumerate(pool.run(world_size, adapters, *case)):
            told = "a.lora_B.default.weight, b.lora_B.default.weight would be pruned whole, as all"
            assert found["told"].startswith(told) and "prunable=[...], without" in found["told"]
            assert found["late"].startswith(
                "a.lora_B.default.weight would be pruned whole, and it began as zeros, so that it"
            ), found["late"]
            names = "a.lora_B.default.weight, b.lora_B.default.weight"
            warned = f"WARNING {names}: all weights are zero now; an update that would prune all"
            assert found["warned"] == ([f"{warned} of them is refused"] if rank == 0 else [])
            assert found["per_tensor"] == found["groups"] == "nothing", found
            assert found["2:4"] == "nothing", found
            assert found["update"].startswith("a.lora_B.default.weight would be pruned whole, as")
            assert found["violation"] is None
            is_whole = found["densities"]["a.lora_B.default.weight"] == 0
            said = "WARNING a.lora_B.default.weight is pruned whole: its 80 weights are zero"
            assert found["whole"] == ([said] if is_whole and rank == 0 else [])
            assert found["unasked"] == [
                f"{layer}.lora_{matrix}.default.weight" for layer in "ab" for matrix in "AB"
            ] + ["c.weight"]


# What is left dense.


def log_of(build: Callable[[], nn.Module]) -> tuple[list[str], list[str]]:
    model = build()
    engine = make_engine(model, stage=0)
    listener = Listener()
    sparsity = attach(engine, HALF)
    return list(sparsity.state.pruned), [
        line for line in listener.stop() if "gradients" not in line
    ]


class Mixed(Net):
    """Of everything that is not pruned unasked."""

    def __init__(self) -> None:
        super().__init__(OurLinear)
        self.words = nn.Embedding(5, 6)
        self.head = nn.Linear(6, 5, bias=False)
        self.head.weight = self.words.weight
        self.places = nn.Embedding(5, 6)
        self.mix = nn.MultiheadAttention(6, 2)
        self.old = Conv1D(3, 4)
        self.convolve = nn.Conv1d(2, 3, 5)
        self.held = nn.Linear(3, 3).requires_grad_(False)
        self.packed = QuantizedLinear(3, 3)
        self.table = nn.Parameter(torch.ones(2, 2))


def logs() -> list[tuple[list[str], list[str]]]:
    return [log_of(Mixed), log_of(Net)]


def test_what_stays_dense_is_told_with_the_reason() -> None:
    (((pruned, said), (plain, few)),) = pool.run(1, logs)
    assert pruned == ["a.weight", "b.weight", "c.weight", "mix.out_proj.weight"]
    numel = 12 * 20 + 20 * 16 + 16 * 4 + 36
    assert said == [
        f"INFO pruning {numel} weights in 4 parameters: {', '.join(pruned)}",
        "WARNING these parameters stay dense: table (of Mixed, which is no nn.Linear); "
        "words.weight (shared by words, head); places.weight (of Embedding); mix.in_proj_weight "
        "(of MultiheadAttention, which is no nn.Linear); old.weight (of Conv1D, which is no "
        "nn.Linear and keeps its weight as [inputs, outputs]); convolve.weight (of Conv1d, which "
        "is no nn.Linear); held.weight (frozen, requires_grad is False); packed.weight "
        "(quantized, int8); a.bias, b.bias, c.bias and 6 more (biases and vectors)",
    ]
    assert plain == ["a.weight", "b.weight", "c.weight"]
    assert few[1:] == [
        "INFO these parameters stay dense: a.bias, b.bias, c.bias (biases and vectors)"
    ]


def build_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2))


def build_frozen() -> nn.Module:
    model = Net()
    for layer in (model.a, model.b, model.c):
        layer.weight.requires_grad_(False)
    return model


def nothing_to_prune() -> dict[str, str]:
    builders: dict[str, Callable[[], nn.Module]] = {
        "gpt2": build_gpt2,
        "embedding": lambda: nn.Sequential(nn.Embedding(4, 3)),
        "frozen": build_frozen,
        "quantized": lambda: nn.Sequential(QuantizedLinear(3, 3)),
        "norm": lambda: nn.Sequential(nn.LayerNorm(3)),
        "convolution": lambda: nn.Sequential(nn.Embedding(4, 3), nn.Conv2d(1, 2, 3)),
    }
    told = {kind: refused(make_engine(build(), stage=0)) for kind, build in builders.items()}
    model = build_gpt2()
    named = [n for n, p in model.named_parameters() if ".c_" in n and p.ndim == 2]
    told["gpt2 named"] = refused(make_engine(model, stage=0), prunable=named)
    lazy = Net()
    lazy.a = nn.LazyLinear(20)
    told["lazy"] = refused(make_engine(lazy, stage=0))
    return told


def test_where_there_is_nothing_to_prune_the_reason_is_told() -> None:
    (told,) = pool.run(1, nothing_to_prune)
    start = (
        "there is nothing to prune unasked, as no nn.Linear has a trained weight of its own: the "
        "model has "
    )
    conv1d = "(of Conv1D, which is no nn.Linear and keeps its weight as [inputs, outputs])"
    assert told["gpt2"].startswith(start) and conv1d in told["gpt2"]
    assert "transformer.wte.weight (shared by transformer.wte, lm_head)" in told["gpt2"]
    assert told["gpt2"].endswith("as in prunable=['transformer.h.0.attn.c_attn.weight']")
    assert told["gpt2 named"] == "nothing"
    assert told["embedding"] == (
        f"{start}0.weight (of Embedding); name what to prune, as in prunable=['0.weight']"
    )
    for kind, names in (
        ("frozen", "a.weight, b.weight, c.weight (frozen, requires_grad is False)"),
        ("quantized", "0.weight (quantized, int8)"),
        ("norm", "no matrix"),
    ):
        assert told[kind] == (
            f"{start}{names}; train one, or name what to prune with prunable=[...]"
        )
    assert told["convolution"].endswith("name what to prune, as in prunable=['1.weight']")
    assert told["lazy"].startswith("a.weight has no shape yet, as in nn.LazyLinear: run a batch")
