"""Pruning in a DeepSpeed loop that is not ours: any module, any stage, three lines."""

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from distributed.errors import BadInput
from distributed.partition import Partition
from distributed.partition_check import check_partition
from distributed.zero import import_deepspeed
from sparsity.attach import attach, find_linear_weights
from sparsity.controller import SparsityController
from sparsity.patterns.name import PatternName
from sparsity.schedule import SparsityConfig, SparsityGroup
from tests.multiprocess import pool
from tests.unit.sparsity.oracle import (
    blocks_oracle,
    expected_digest,
    expected_keep,
    n_of_m_oracle,
)

CUBIC = SparsityConfig(
    final_sparsity=0.8, prune_start_step=1, prune_end_step=5, prune_interval_steps=2
)
STEPS = 7


class TinyGPT(nn.Module):
    """One causal block; the head is tied to the embedding, one layer is not reached by the loss."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.embed = nn.Embedding(37, 12)
            self.mix = nn.Linear(12, 36)
            self.out = nn.Linear(12, 12, bias=False)
            self.norm = nn.LayerNorm(12)
            self.unused = nn.Linear(12, 5)
            self.head = nn.Linear(12, 37, bias=False)
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        q, k, v = self.mix(hidden).chunk(3, -1)
        hidden = hidden + self.out(
            nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        )
        logits = self.head(self.norm(hidden)).float()
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


PRUNED = ("mix.weight", "out.weight", "unused.weight")


def foreign_engine(stage: int, precision: str, *, accumulation: int = 1, **config: Any) -> Any:
    """What a user writes without us."""
    deepspeed = import_deepspeed("cpu")
    half = precision == "fp16"
    if half:
        # DeepSpeed asks the CPU for fp16 speed, not for fp16: torch computes it, slowly.
        from deepspeed.accelerator import get_accelerator

        kind = type(get_accelerator())
        kind.is_fp16_supported = lambda _: True
        kind.supported_dtypes = lambda _: [torch.float32, torch.bfloat16, torch.float16]
    model = TinyGPT()
    # With different settings, and so in groups of their own; each has weights to prune. Not with
    # different decays: at stage 0 in bf16 `initialize` takes an update, which would rank them anew.
    others = {id(p) for p in (model.out.weight, *(p for p in model.parameters() if p.ndim == 1))}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in others], "weight_decay": 0.1},
        {
            "params": [p for p in model.parameters() if id(p) in others],
            "weight_decay": 0.1,
            "betas": (0.8, 0.95),
        },
    ]
    zero = {
        "stage": stage,
        "memory_efficient_linear": False,
        "stage3_param_persistence_threshold": 0,
    }
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(groups, lr=1e-2),
        config={
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": 0.5,
            "zero_optimization": zero | config.pop("zero", {}),
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 62,
            precision: {"enabled": True} | ({"initial_scale_power": 8} if half else {}),
        }
        | config,
    )
    return engine


def tokens(step: int, micro_step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * step + 10 * micro_step + dist.get_rank())
    return torch.randint(0, 37, (2, 9), generator=generator)


def gather(sparsity: SparsityController, values: dict[Any, torch.Tensor]) -> dict[str, np.ndarray]:
    """Collective: whole parameters from the owned parts."""
    whole = {}
    for name in PRUNED:
        total = torch.zeros(sparsity._partition.numels[name], dtype=torch.float64)
        for f, value in values.items():
            if f.name == name:
                total[f.owned_start : f.owned_stop] = value[f.owned].double()
        dist.all_reduce(total)
        whole[name] = total.numpy()
    return whole


def train_and_check(stage: int, precision: str, accumulation: int) -> list[str]:
    engine = foreign_engine(stage, precision, accumulation=accumulation)
    sparsity = attach(engine, CUBIC)
    partition = sparsity._partition
    assert tuple(sparsity.state.pruned) == PRUNED
    keep = {n: np.ones(partition.numels[n], bool) for n in PRUNED}
    digests = []
    alive = watch_forward(engine, sparsity, keep)
    for step in range(STEPS):
        before = gather(sparsity, {f: partition.master(f) for f in sparsity._masks})
        if sparsity.update(step):
            count = sparsity.pruned_numel - sum(int((~k).sum()) for k in keep.values())
            weights = {n: w.astype(np.float32) for n, w in before.items()}
            keep = expected_keep(weights, count, live=keep)
            assert sparsity.state.digest == expected_digest(keep)
            digests.append(sparsity.state.digest)
            # Counts by parameter, digest and live weights; then three rounds, and six for ties at
            # most. The first update prunes nothing: it asks whether all weights are finite.
            wire = sparsity.update_metrics()["sparsity/update_bytes"] - 8 * (len(PRUNED) + 2)
            assert (32 * 1024 <= wire <= 112 * 1024) if count else wire == 24
        for micro_step in range(accumulation):
            engine.backward(engine(tokens(step, micro_step)))
            engine.step()
        assert not sparsity.state.pending
        assert sparsity.find_violation() is None
        assert not alive
        check_partition(partition)
        moments = gather(sparsity, {f: partition.moments(f)["exp_avg"] for f in sparsity._masks})
        after = gather(sparsity, {f: partition.master(f) for f in sparsity._masks})
        for n in PRUNED:
            assert not after[n][~keep[n]].any()
            if digests and step == STEPS - 1:
                assert after[n][keep[n]].any()
        if step == 1:  # the first update came before any moment was there
            assert all(not moments[n][~keep[n]].any() for n in PRUNED)
    assert len(digests) == 3 and sparsity.pruned_numel == round(0.8 * sparsity.prunable_numel)
    return digests


def watch_forward(
    engine: Any, sparsity: SparsityController, keep: dict[str, np.ndarray]
) -> list[str]:
    """Names of weights that a forward reads though they are pruned, as it goes.

    The hooks come after DeepSpeed's, which gather a weight where it is sharded.
    """
    alive: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, _: Any) -> None:
            weight = module.weight.detach().float().view(-1).numpy()
            assert weight.size == keep[name].size
            if not sparsity.state.pending and weight[~keep[name]].any():
                alive.append(name)

        return hook

    for name in PRUNED:
        module = engine.module.get_submodule(name.removesuffix(".weight"))
        module.register_forward_pre_hook(look(name))
    return alive


@pytest.mark.parametrize(
    ("world_size", "precision"),
    [(w, p) for p in ("fp32", "bf16") for w in (1, 2, 3)] + [(2, "fp16")],
)
def test_three_lines_prune_any_module(world_size: int, precision: str) -> None:
    for stage in (0, 1, 2, 3):
        accumulation = 2 if stage in (1, 3) else 1
        ranks = pool.run(world_size, train_and_check, stage, precision, accumulation)
        assert all(digests == ranks[0] for digests in ranks)


def structured_digest(stage: int, precision: str, config: SparsityConfig) -> tuple[str, str]:
    """(our digest, the oracle's) after one update of the matrices that a pattern divides."""
    engine = foreign_engine(stage, precision)
    names = ["mix.weight", "out.weight"]
    sparsity = attach(engine, config, prunable=names)
    partition = sparsity._partition
    masters = gather(sparsity, {f: partition.master(f) for f in sparsity._masks})
    sparsity.update(0)
    weights = {n: masters[n].astype(np.float32) for n in names}
    keep = {n: np.ones(w.size, bool) for n, w in weights.items()}
    pattern = PatternName.parse(config.pattern)
    units = sparsity.pruned_numel // pattern.unit_numel
    if pattern.kind == "n_of_m":
        want = n_of_m_oracle(weights, keep, pattern.rows, pattern.columns, units)
    else:
        shapes = {n: (partition.shapes[n][0], partition.shapes[n][1]) for n in names}
        want = blocks_oracle(weights, shapes, keep, pattern.rows, pattern.columns, units)
    engine.backward(engine(tokens(0, 0)))
    engine.step()
    assert sparsity.find_violation() is None
    return sparsity.state.digest, expected_digest(want)


@pytest.mark.parametrize(("pattern", "share"), [("2:4", 0.5), ("4x2", 0.6), ("1x6", 0.3)])
def test_patterns_equal_the_oracle_for_every_partitioning(pattern: str, share: float) -> None:
    config = SparsityConfig(schedule="one_shot", final_sparsity=share, pattern=pattern)
    for precision in ("fp32", "bf16"):
        digests = {
            digest
            for world_size in (1, 2, 3)
            for stage in (0, 1, 2, 3)
            for ours, want in pool.run(world_size, structured_digest, stage, precision, config)
            for digest in (ours, want)
        }
        assert len(digests) == 1, "precisions differ: DeepSpeed's masters start from rounded ones"


def grouped(stage: int, precision: str, scope: str) -> tuple[str, dict[str, int]]:
    engine = foreign_engine(stage, precision)
    groups = [
        SparsityGroup(match="out.*", final_sparsity=0.25),
        SparsityGroup(match="u*", final_sparsity=0),
    ]
    config = SparsityConfig(
        schedule="one_shot",
        final_sparsity=0.75,
        scope=scope,  # type: ignore[arg-type]
        groups=groups if scope == "global" else [],
    )
    sparsity = attach(engine, config)
    sparsity.update(0)
    return sparsity.state.digest, sparsity.state.pruned


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("scope", "pruned"), [("global", (324, 36, 0)), ("per_tensor", (324, 108, 45))]
)
def test_scopes_have_targets_of_their_own(
    precision: str, scope: str, pruned: tuple[int, ...]
) -> None:
    answers = [
        answer
        for world_size in (1, 2, 3)
        for stage in (0, 1, 2, 3)
        for answer in pool.run(world_size, grouped, stage, precision, scope)
    ]
    assert answers[0][1] == dict(zip(PRUNED, pruned, strict=True))
    assert all(answer == answers[0] for answer in answers)


def overflow() -> tuple[bool, bool, bool]:
    """fp16's loss scale overflows: the step is skipped, and the masks wait for the next one."""
    fp16 = {"enabled": True, "initial_scale_power": 40, "hysteresis": 1, "loss_scale_window": 1000}
    engine = foreign_engine(2, "fp16", fp16=fp16)
    sparsity = attach(engine, SparsityConfig(schedule="one_shot", final_sparsity=0.5))
    sparsity.update(0)
    engine.backward(engine(tokens(0, 0)))
    engine.step()
    skipped, pending = not engine.was_step_applied(), sparsity.state.pending
    for step in range(1, 40):
        engine.backward(engine(tokens(step, 0)))
        engine.step()
        if engine.was_step_applied():
            break
    return skipped, pending, sparsity.state.pending or sparsity.find_violation() is not None


def test_an_overflow_leaves_the_update_pending() -> None:
    assert pool.run(2, overflow) == [(True, True, False)] * 2


def clip_norm(stage: int, precision: str, config: dict[str, Any]) -> tuple[float, bool, bool]:
    """The clip norm, whether moments are clean, and whether the log says what the norm includes."""
    engine = foreign_engine(stage, precision, **config)
    said: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("sparsity.controller").addHandler(listener)
    sparsity = attach(engine, SparsityConfig(schedule="one_shot", final_sparsity=0.9))
    logging.getLogger("sparsity.controller").removeHandler(listener)
    sparsity.update(0)
    for step in range(2):
        engine.backward(engine(tokens(step, 0)))
        engine.step()
    clean = all(
        not sparsity._partition.moments(f)["exp_avg"][mask.keep == 0].any()
        for f, mask in sparsity._masks.items()
    )
    norm = engine.get_global_grad_norm()  # at stage 0 in fp32 DeepSpeed keeps none
    warned = any(
        "the clip norm includes" in r.getMessage() for r in said if r.levelname == "WARNING"
    )
    return float(norm or 0.0), clean, warned


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_clip_by_one_norm_and_moments_are_clean(world_size: int) -> None:
    cases: list[tuple[int, str, dict[str, Any]]] = [
        (stage, precision, {}) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")
    ]
    reached = len(cases)
    cases.append((1, "bf16", {"data_types": {"grad_accum_dtype": "fp32"}}))  # BF16_Optimizer
    cases += [(s, "bf16", {"zero": {"offload_optimizer": {"device": "cpu"}}}) for s in (1, 2, 3)]
    for number, case in enumerate(cases):
        answers = pool.run(world_size, clip_norm, *case)
        assert len({norm for norm, _, _ in answers}) == 1, (case, answers)
        assert all(clean for _, clean, _ in answers), case
        # Where it holds pruned gradients, the log says so, once.
        assert [warned for *_, warned in answers] == [number >= reached] + [False] * (
            world_size - 1
        ), case


def resumed(stage: int, folder: str, at: int) -> tuple[str, str, str]:
    """Digests and a hash of the masters: undisturbed; saved by DeepSpeed at `at`, and gone on."""

    def go(engine: Any, sparsity: SparsityController, steps: range) -> tuple[str, str]:
        for step in steps:
            sparsity.update(step)
            engine.backward(engine(tokens(step, 0)))
            engine.step()
        masters = gather(sparsity, {f: sparsity._partition.master(f) for f in sparsity._masks})
        return sparsity.state.digest, repr([masters[n].tobytes() for n in PRUNED])

    engine = foreign_engine(stage, "bf16")
    whole = attach(engine, CUBIC)
    go(engine, whole, range(at))
    engine.save_checkpoint(folder)
    want = go(engine, whole, range(at, STEPS))
    engine = foreign_engine(stage, "bf16")
    engine.load_checkpoint(folder)
    sparsity = attach(engine, CUBIC, resume_step=at)
    got = go(engine, sparsity, range(at, STEPS))
    same = "the same" if got == want else "not the same"
    return want[0], got[0], same


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_loop_goes_on_from_a_checkpoint_of_deepspeeds_own(tmp_path: Path, at: int) -> None:
    for world_size in (1, 2) if at == 4 else (2,):
        for stage in (0, 1, 2, 3):
            folder = tmp_path / f"{world_size}-{stage}"
            for want, got, same in pool.run(world_size, resumed, stage, str(folder), at):
                assert (got, same) == (want, "the same"), (world_size, stage)


def misuse(how: str) -> str:
    engine = foreign_engine(2, "fp32", accumulation=2 if how == "batches" else 1)
    frozen = SparsityConfig(schedule="frozen")
    config = frozen if how in ("frozen", "frozen resume") else CUBIC
    step = {"frozen resume": 9, "dense resume": 9}.get(how)
    try:
        sparsity = attach(engine, config, prunable=["mix.weight"], resume_step=step)
        for step in range(6 if how == "resumed dense" else 0, 8):
            sparsity.update(step)
            engine.backward(engine(tokens(step, 0)))
            engine.step()
    except BadInput as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("batches", "update(1) is called between the batches of a step"),
        ("resumed dense", "update(6) is called, and the update of step 5 never was"),
        ("dense resume", "0 weights are zero, and before step 9 at least 346 were pruned"),
        ("frozen", "the schedule is frozen, and no masks are there"),
        ("frozen resume", "0 weights are zero, and before step 9 at least 1 were pruned"),
    ],
)
def test_a_loop_that_would_train_with_other_masks_is_stopped(how: str, told: str) -> None:
    answers = pool.run(2, misuse, how)
    assert answers[0].startswith(told) and answers[0] == answers[1]


def compiled_digests() -> set[str]:
    config = SparsityConfig(schedule="one_shot", final_sparsity=0.5)
    digests = set()
    for wrap in (False, True):
        engine = foreign_engine(2, "fp32")
        if wrap:
            engine.module.mix = torch.compile(engine.module.mix)
        sparsity = attach(engine, config)
        assert tuple(sparsity.state.pruned) == PRUNED
        sparsity.update(0)
        digests.add(sparsity.state.digest)
    return digests


def test_a_compiled_module_has_the_same_digest() -> None:
    assert all(len(digests) == 1 for digests in pool.run(2, compiled_digests))


def choose(names: Any) -> str:
    try:
        config = SparsityConfig(schedule="one_shot", final_sparsity=0.5)
        attach(foreign_engine(2, "fp32"), config, prunable=names)
    except BadInput as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["mix.weight", "head.weight"], "head.weight .* it is embed.weight: name that"),
        (["mix.wieght"], "mix.wieght .* of that name: did you mean mix.weight"),
        (["out.weight", "out.weight"], "prunable has out.weight twice"),
        ("mix.weight", r"give a list of names, prunable=\['mix.weight'\]"),
        ([], "nothing to prune: prunable is empty"),
    ],
)
def test_what_is_no_choice_of_parameters_is_refused(names: Any, told: str) -> None:
    for refusal in pool.run(2, choose, names):
        assert re.search(told, refusal), refusal


def tied_digest(stage: int, precision: str) -> tuple[str, str, str | None]:
    """Of the embedding, which is the head too, after an update and two steps; and the oracle's."""
    engine = foreign_engine(stage, precision)
    config = SparsityConfig(schedule="one_shot", final_sparsity=0.5)
    sparsity = attach(engine, config, prunable=["embed.weight"])
    partition = sparsity._partition
    total = torch.zeros(partition.numels["embed.weight"], dtype=torch.float64)
    for f in sparsity._masks:
        total[f.owned_start : f.owned_stop] = partition.master(f)[f.owned].double()
    dist.all_reduce(total)
    weights = {"embed.weight": total.numpy().astype(np.float32)}
    sparsity.update(0)
    want = expected_digest(expected_keep(weights, sparsity.pruned_numel))
    for step in range(2):
        engine.backward(engine(tokens(step, 0)))
        engine.step()
    return sparsity.state.digest, want, sparsity.find_violation()


def test_a_tied_weight_is_pruned_once() -> None:
    for precision in ("fp32", "bf16"):
        answers = {
            answer
            for world_size in (1, 2, 3)
            for stage in (0, 1, 2, 3)
            for answer in pool.run(world_size, tied_digest, stage, precision)
        }
        assert len(answers) == 1
        ((digest, want, violation),) = answers
        assert digest == want and violation is None


def attach_damaged(stage: int) -> str:
    """A fragment lost: a rank's own fault, which every rank is to notice."""
    engine = foreign_engine(stage, "fp32")
    layout = "_stage3_fragments" if stage == 3 else "_flat_fragments"
    original = getattr(Partition, layout)
    setattr(Partition, layout, lambda self: original(self)[1:])
    try:
        attach(engine, CUBIC)
    except RuntimeError as error:
        return str(error)
    finally:
        setattr(Partition, layout, original)
    return "nothing"


@pytest.mark.parametrize("stage", [2, 3])
def test_attach_checks_what_it_found(stage: int) -> None:
    for told in pool.run(2, attach_damaged, stage):
        assert told.endswith("exactly once")


def test_tied_weights_are_not_taken_unasked() -> None:
    assert tuple(find_linear_weights(TinyGPT())) == PRUNED


def refusals() -> dict[str, str]:
    """A real engine whose configuration is then changed to what cannot be followed."""
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    engine = foreign_engine(3, "fp32")
    zero = engine._config.zero_config
    named = list(engine.module.named_parameters())
    Partition(engine, named)
    changes: list[tuple[Any, str, Any]] = [
        (engine, "zenflow", True),
        (zero, "offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig(device="nvme")),
        (zero, "offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig(device="cpu", ratio=0.5)),
        (zero, "offload_optimizer", DeepSpeedZeroOffloadOptimizerConfig(super_offload=True)),
        (zero, "offload_param", DeepSpeedZeroOffloadParamConfig(device="nvme")),
        (zero, "zero_hpz_partition_size", 2),
        (zero, "zero_quantized_weights", True),
        (engine, "mp_world_size", 2),
        (engine, "sequence_parallel_size", 2),
        (engine, "has_moe_layers", True),
        (engine._config, "managed_gradient_accumulation", False),
        (engine._config.compile_config, "deepcompile", True),
        (engine, "fp16_master_weights_and_gradients", lambda: True),
        (engine, "bf16_master_weights_and_gradients", lambda: True),
        (engine.optimizer, "__class__", type("MiCS_Optimizer", (type(engine.optimizer),), {})),
        (engine, "__class__", type("PipelineEngine", (type(engine),), {})),
    ]
    said = {}
    for owner, field, value in changes:
        before = getattr(owner, field)
        setattr(owner, field, value)
        try:
            Partition(engine, named)
        except BadInput as error:
            said[f"{field} {len(said)}"] = str(error)
        setattr(owner, field, before)
    Partition(engine, named)
    return said


def test_what_cannot_be_followed_is_refused_by_name() -> None:
    words = [
        "zenflow",
        "offload_optimizer.device nvme",
        "offload_optimizer.ratio",
        "super_offload",
        "offload_param.device nvme",
        "zero_hpz_partition_size",
        "zero_quantized_weights",
        "tensor parallelism",
        "sequence parallelism",
        "MoE",
        "managed_gradient_accumulation false",
        "compile.deepcompile",
        "fp16.fp16_master_weights_and_grads",
        "bf16.bf16_master_weights_and_grads",
        "mics_shard_size",
        "pipeline parallelism",
    ]
    (said,) = pool.run(1, refusals)
    assert len(said) == len(words)
    for word, sentence in zip(words, said.values(), strict=True):
        assert word in sentence and sentence.endswith("switch it off")
