"""A small model with awkward sizes, and engines around it, for tests on several processes."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from distributed.config import OptimizerConfig, ZeroConfig
from distributed.fragment import Fragment
from distributed.zero import Engine, build_engine


class Toy(nn.Module):
    """Linear layers with sizes that do not divide, a vector of 301, and weights of one and two
    elements.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = nn.Linear(13, 37)
            self.second = nn.Linear(37, 23)
            self.third = nn.Linear(23, 13, bias=False)
            self.long = nn.Parameter(torch.randn(301))
            self.one = nn.Parameter(torch.randn(1))
            self.two = nn.Parameter(torch.randn(2))
            with torch.no_grad():
                for p in self.parameters():  # many ties, and values that bf16 cannot hold
                    p.copy_((p * 512).round() / 512 + 0.001)

    def forward(self, x: torch.Tensor, y: torch.Tensor, divisor: float) -> torch.Tensor:
        hidden = torch.tanh(self.first(x.to(self.first.weight.dtype)))
        hidden = torch.tanh(self.second(hidden)) * self.one + self.long.mean() * self.two.sum()
        return ((self.third(hidden).float() - y) ** 2).sum() / divisor


PRUNABLE = ("first.weight", "second.weight", "third.weight", "long", "one", "two")
NO_DECAY = ("first.bias", "second.bias")


def batch(step: int, rows: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(rows, 13, generator=generator), torch.randn(rows, 13, generator=generator)


def named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters())


def initial_state(seed: int = 0) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone().view(-1) for name, p in named(Toy(seed))}


def toy_engine(
    *,
    stage: int,
    precision: str = "fp32",
    accumulation: int = 1,
    max_grad_norm: float = 1.0,
    weight_decay: float = 0.01,
    state: dict[str, torch.Tensor] | None = None,
    **zero: Any,
) -> Engine:
    module = Toy()
    state = initial_state() if state is None else state
    with torch.no_grad():
        for name, p in named(module):
            p.copy_(state[name].view(p.shape))
    advanced = {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
    advanced |= zero.pop("advanced", {})
    engine = build_engine(
        module,
        named_parameters=named(module),
        no_decay=NO_DECAY,
        optimizer=OptimizerConfig(
            precision=precision,  # type: ignore[arg-type]
            adam_eps=1e-8,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            micro_batch_rows=1,
        ),
        zero=ZeroConfig(stage=stage, advanced=advanced, **zero),
        accumulation_steps=accumulation,
        device=torch.device("cpu"),
    )
    engine.partition.write_masters(lambda n, start, length: state[n][start : start + length])
    engine.partition.write_moments({}, 0)
    return engine


def train_step(engine: Engine, step: int, *, accumulation: int = 1, lr: float = 1e-2) -> bool:
    """One update on this rank's share of the step's rows."""
    backward(engine, step, accumulation=accumulation)
    return engine.step(lr)


def backward(engine: Engine, step: int, *, accumulation: int = 1) -> None:
    x, y = batch(step)
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = slice(len(x) * rank // world, len(x) * (rank + 1) // world)
    for xs, ys in zip(
        x[mine].tensor_split(accumulation), y[mine].tensor_split(accumulation), strict=True
    ):
        engine.backward(engine.forward(x=xs, y=ys, divisor=float(y.numel())))


def gather(engine: Engine, values: dict[Fragment, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collective, tests only: whole parameters from every rank's owned parts."""
    full = {}
    for name, numel in engine.partition.numels.items():
        total = torch.zeros(numel, dtype=torch.float64)
        for f, value in values.items():
            if f.name == name:
                total[f.owned_start : f.owned_stop] = value[f.owned].double()
        dist.all_reduce(total)
        full[name] = total
    return full


def gather_masters(engine: Engine) -> dict[str, torch.Tensor]:
    partition = engine.partition
    masters = gather(engine, {f: partition.master(f) for f in partition.fragments})
    return {name: value.float() for name, value in masters.items()}
