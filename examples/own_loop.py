"""Prune a small GPT in a DeepSpeed loop of one's own: no BERT, no Ray, no configuration file.

    python examples/own_loop.py
    torchrun --nproc-per-node 2 examples/own_loop.py --stage 3

It reads characters of the book in samples/ and prints the loss, the sparsity and the masks' digest,
which is the same for every number of processes as long as the weights are.
"""

import argparse
import gzip
import json
import logging
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # not needed where sparsebert is installed

from distributed.errors import BadInput
from distributed.world import detect_topology, ensure_process_group, has_gpu_for_each_process
from distributed.zero import import_deepspeed
from sparsity.attach import attach
from sparsity.schedule import SparsityConfig

CONTEXT, ROWS = 64, 8


class Block(nn.Module):
    """Causal attention and a feed-forward layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        q, k, v = (
            t.view(rows, length, self.heads, -1).transpose(1, 2)
            for t in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Predicts the next character; the head is tied to the embedding, and so stays dense."""

    def __init__(self, vocabulary: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        x = self.embed(text[:, :-1]) + self.position.weight
        logits = self.head(self.norm(self.blocks(x))).float()
        return nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


def read_characters() -> tuple[torch.Tensor, int]:
    """A book as character numbers, and how many there are."""
    book = Path(__file__).parents[1] / "samples" / "books.jsonl.gz"
    with gzip.open(book, "rt", encoding="utf-8") as lines:
        text = "".join(json.loads(next(lines))["text"] for _ in range(20))
    alphabet = sorted(set(text))
    return torch.tensor([alphabet.index(c) for c in text]), len(alphabet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--stage", type=int, default=2, choices=(0, 1, 2, 3))
    parser.add_argument("--sparsity", type=float, default=0.8)
    options = parser.parse_args()
    if not 0 < options.sparsity < 1:
        parser.error("--sparsity is the share of the weights that is pruned, between 0 and 1")
    # What is pruned and what stays dense; what needs attention is told without these lines too.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sparsity").setLevel(logging.INFO)
    topology = detect_topology(use_gpu=has_gpu_for_each_process())
    ensure_process_group(topology)
    deepspeed = import_deepspeed(topology.device.type)
    text, vocabulary = read_characters()
    torch.manual_seed(0)  # all ranks start alike
    model = GPT(vocabulary)

    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3),
        config={
            "train_micro_batch_size_per_gpu": ROWS,
            "gradient_clipping": 1.0,
            "zero_optimization": {"stage": options.stage, "memory_efficient_linear": False},
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 62,
        },
    )
    sparsity = attach(
        engine,
        SparsityConfig(
            final_sparsity=options.sparsity,
            prune_start_step=min(10, options.steps // 2),
            prune_end_step=options.steps // 2,
            prune_interval_steps=10,
        ),
    )
    places = torch.Generator().manual_seed(topology.rank)
    for step in range(options.steps):
        sparsity.update(step)
        starts = torch.randint(len(text) - CONTEXT - 1, (ROWS,), generator=places)
        rows = torch.stack([text[s : s + CONTEXT + 1] for s in starts])
        loss = engine(rows.to(engine.device))
        engine.backward(loss)
        engine.step()
        if topology.is_first and (step % 30 == 0 or step == options.steps - 1):
            pruned = sparsity.pruned_numel / sparsity.prunable_numel
            print(f"step {step:4}  loss {loss.item():.3f}  sparsity {pruned:.4f}  "
                  f"digest {sparsity.state.digest}")  # fmt: skip
    violation = sparsity.find_violation()  # collective: every rank asks
    if topology.is_first:
        print(f"every pruned weight is zero on every rank: {violation is None}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"error: {error}")
