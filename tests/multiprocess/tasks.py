"""A fine-tuning run, tiny, on sentences whose label a word of theirs gives away: tests share it."""

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert.tasks.checks import check_finetuning
from bert.tasks.finetune import FinetunePlan, Finetuning
from bert.tasks.finetune_config import FinetuneConfig
from tests.multiprocess import pool
from training.folder import RunFolder, run_folder_of
from training.session import begin_run

GOOD, BAD, OTHER = (
    ("good", "great", "new"),
    ("war", "death", "against"),
    ("the", "of", "was", "and"),
)


def write_sentences(file: Path, count: int, seed: int) -> Path:
    draw = random.Random(seed)
    lines = ["sentence\tlabel"]
    for _ in range(count):
        words = draw.choices(OTHER, k=draw.randrange(2, 9))
        label = draw.randrange(2)
        words.insert(draw.randrange(len(words)), draw.choice((BAD, GOOD)[label]))
        lines.append(f"{' '.join(words)}\t{label}")
    file.write_text("\n".join(lines) + "\n")
    return file


def write_tags(file: Path, count: int, seed: int) -> Path:
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        for _ in range(draw.randrange(3, 30)):
            word = draw.choice(OTHER + GOOD)
            lines.append(f"{word}\t{'B-Good' if word in GOOD else 'O'}")
        lines.append("")
    file.write_text("\n".join(lines))
    return file


def task_run(folder: Path, init_from: Path, **sections: Any) -> FinetuneConfig:
    fields: dict[str, Any] = {
        "name": "task",
        "seeds": [5],
        "model": {"init_from": init_from},
        "task": {
            "kind": "classification",
            "train": str(folder / "train.tsv"),
            "dev": str(folder / "dev.tsv"),
            "test": str(folder / "test.tsv"),
            "metrics": ["accuracy", "matthews"],
            "max_seq_len": 32,
        },
        "train": {
            "epochs": 3,
            "global_batch_rows": 6,
            "micro_batch_rows": 2,
            "learning_rate": 5e-3,
            "precision": "fp32",
            "log_interval_steps": 1,
        },
        "launch": {"runs_dir": folder / "runs", "use_gpu": False},
    }
    for section, changes in sections.items():
        both = isinstance(changes, dict) and section in fields
        fields[section] = {**fields[section], **changes} if both else changes
    return FinetuneConfig.model_validate(fields).resolved()


def _train_here(
    config: FinetuneConfig, plan: dict[str, Any], stop_after: int | None
) -> dict[str, Any]:
    """In a pool process. The last rank alone asks to stop, after `stop_after` steps from here."""
    import torch.distributed as dist

    from training.worker import work

    asked = 0

    def stop_requested() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_after and dist.get_rank() == dist.get_world_size() - 1

    recipe = Finetuning(config)
    state = work(recipe, FinetunePlan(**plan), use_gpu=False, stop_requested=stop_requested)
    return state.to_dict()


def finetune(
    world_size: int, config: FinetuneConfig, *, stop_after: int | None = None
) -> RunFolder:
    """Train or continue the run of the first seed; all ranks end alike."""
    run = config.for_seed(config.seeds[0])
    plan = check_finetuning(run)
    begin_run(Finetuning(run), plan)
    states = pool.run(world_size, _train_here, run, asdict(plan), stop_after)
    assert all(state == states[0] for state in states), states
    return run_folder_of(run)
