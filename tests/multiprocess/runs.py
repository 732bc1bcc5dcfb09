"""The real pretraining run, tiny, on a little real text: what the tests of whole runs share.

The vocabulary is cut to what a model of 32 can carry, so that a run of six steps takes about a
second: single characters, and the commonest words of BERT's own file.
"""

import gzip
import string
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bert.config import PretrainConfig
from bert.corpora.prepare import prepare
from bert.pretrain import Pretraining, check_pretraining
from distributed.checkpoint.reading import MASK, Checkpoint, step_folder
from tests.multiprocess import pool
from training.folder import RunFolder, read_metrics, run_folder_of
from training.session import begin_run

SAMPLES = Path(__file__).parents[2] / "samples"
STEPS = 6
Contents = dict[str, dict[str, torch.Tensor]]  # kind -> parameter -> the whole flat tensor


@dataclass(frozen=True)
class Text:
    """Prepared shards and the small vocabulary that they were made with."""

    training: Path
    validation: Path
    vocabulary: Path


def prepare_text(folder: Path) -> Text:
    """Twelve articles of the samples as shards."""
    tokens = (SAMPLES / "vocab.txt").read_text(encoding="utf-8").splitlines()
    characters = set(string.ascii_lowercase + string.digits + string.punctuation)
    words = [t for t in tokens[1996:2600] if t.isalpha()]
    small = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    small += [t for t in tokens if t.removeprefix("##") in characters and t not in words] + words
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(dict.fromkeys(small)) + "\n", encoding="utf-8")
    with gzip.open(SAMPLES / "wikipedia.jsonl.gz", "rt", encoding="utf-8") as articles:
        lines = [next(articles) for _ in range(12)]
    (folder / "articles.jsonl").write_text("".join(lines), encoding="utf-8")
    report = prepare(
        "wikipedia",
        [folder / "articles.jsonl"],
        folder / "text",
        vocabulary,
        validation_fraction=0.25,
    )
    return Text(report.output, report.validation_output, vocabulary)


def run_config(text: Text, folder: Path, name: str, **sections: Any) -> PretrainConfig:
    """A run of six steps that prunes to 80 % meanwhile; `sections` change fields of sections."""
    fields: dict[str, Any] = {
        "name": name,
        "seed": 7,
        "model": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "vocab": text.vocabulary,
        },
        "data": {"shards": [text.training], "max_seq_len": 64, "row_tokens": 64},
        "train": {
            "total_steps": STEPS,
            "global_batch_rows": 6,
            "micro_batch_rows": 2,
            "learning_rate": 5e-3,
            "warmup_steps": 2,
            "precision": "fp32",
            "log_interval_steps": 1,
        },
        "evaluation": {"interval_steps": STEPS, "rows": 3, "sets": {"held-out": text.validation}},
        "zero": {"stage": 2},
        "sparsity": {
            "initial_sparsity": 0.2,
            "final_sparsity": 0.8,
            "prune_start_step": 1,
            "prune_end_step": 4,
            "prune_interval_steps": 2,
        },
        "checkpoint": {"interval_steps": 100, "keep_last": 9},
        "launch": {"runs_dir": folder, "use_gpu": False},
    }
    for section, changes in sections.items():
        whole = changes is None or not isinstance(changes, Mapping)
        fields[section] = changes if whole else {**(fields.get(section) or {}), **changes}
    return PretrainConfig.model_validate(fields)


def one_shot(**changes: Any) -> dict[str, Any]:
    """A sparsity section that prunes half at the first step; replaces the schedule's fields."""
    return {
        "schedule": "one_shot",
        "initial_sparsity": 0.0,
        "final_sparsity": 0.5,
        "prune_start_step": 0,
        "prune_end_step": None,
        **changes,
    }


FROZEN = {"schedule": "frozen", "initial_sparsity": 0.0, "prune_end_step": None}


def _train_here(
    config: PretrainConfig, plan: dict[str, Any], stop_after: int | None
) -> dict[str, Any]:
    """In a pool process. The last rank alone asks to stop, after `stop_after` steps from here."""
    import torch.distributed as dist

    from training.recipe import RunPlan
    from training.worker import work

    asked = 0

    def stop_requested() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_after and dist.get_rank() == dist.get_world_size() - 1

    recipe = Pretraining(config)
    try:
        state = work(recipe, RunPlan(**plan), use_gpu=False, stop_requested=stop_requested)
    except Exception as error:  # the pool lives on: all ranks are meant to fail alike
        return {"error": f"{type(error).__name__}: {error}"}
    return state.to_dict()


def start(
    world_size: int, config: PretrainConfig, *, stop_after: int | None = None
) -> list[dict[str, Any]]:
    """Check and train or continue the run; what each rank ended with (its state, or its error)."""
    plan = check_pretraining(config)
    begin_run(Pretraining(config), plan)
    return pool.run(world_size, _train_here, config, asdict(plan), stop_after)


def train(world_size: int, config: PretrainConfig, *, stop_after: int | None = None) -> RunFolder:
    """`start`, which must succeed on all ranks alike; the run's folder."""
    states = start(world_size, config, stop_after=stop_after)
    assert all(state == states[0] and "error" not in state for state in states), states
    return run_folder_of(config)


def last_checkpoint(folder: RunFolder, step: int = STEPS) -> Checkpoint:
    return Checkpoint(step_folder(folder.checkpoints, step))


def contents(checkpoint: Checkpoint) -> Contents:
    """Everything that the checkpoint keeps of the weights; masks only where there are any."""
    whole: Contents = {}
    for kind in checkpoint.kinds:
        read = checkpoint.reader(kind)
        for name, numel in checkpoint.numels.items():
            if kind != MASK or name in checkpoint.state["sparsity"]["pruned"]:
                whole.setdefault(kind, {})[name] = read(name, 0, numel)
    return whole


def differences(a: Contents, b: Contents) -> list[str]:
    """Where two checkpoints differ in any bit; their kinds and names must be the same."""
    assert a and a.keys() == b.keys()
    found = []
    for kind in a:
        assert a[kind].keys() == b[kind].keys()
        for name in a[kind]:
            left, right = a[kind][name].numpy(), b[kind][name].numpy()
            if left.dtype != right.dtype or left.tobytes() != right.tobytes():
                found.append(f"{kind} of {name}")
    return found


def column(folder: RunFolder, figure: str) -> dict[int, Any]:
    """One figure of metrics.jsonl by step; each step is logged once."""
    records = read_metrics(folder.metrics_file)
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps)), steps
    return {record["step"]: record[figure] for record in records if figure in record}


def worker_log(folder: RunFolder, rank: int) -> str:
    return (folder.logs / f"worker-{rank}.log").read_text(encoding="utf-8")
