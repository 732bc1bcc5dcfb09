"""A configuration of sparsebert 0.1 means under later code what it meant: the rule for new fields.

fields.json in the fixture run-0.1 has every field that the old code knew. A run's identity compares
all of them but those in LEFT_OUT, so a field that is added to it must be null in an old run.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from bert.config import PretrainConfig
from bert.tasks.finetune_config import FinetuneConfig
from launch.study.plan import StudyConfig
from tests.fixtures import old_run
from tests.fixtures.fields import Field, list_fields

ROOT = Path(__file__).parents[2]
OLD: dict[str, dict[str, Field]] = old_run.read("fields.json")
ROOTS: dict[str, type[BaseModel]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "compare": StudyConfig,
}
# What a run's identity does not compare (training/folder.py, bert/tasks/checks.py): how and
# where it is computed, and paths, whose content is compared instead. A study has no identity.
_HOW = [
    *("name", "zero.*", "checkpoint.*", "launch.*", "train.micro_batch_rows"),
    *("train.log_interval_steps", "train.on_non_finite", "train.max_non_finite_steps"),
    *("model.vocab", "model.init_from"),
]
LEFT_OUT = {
    "pretrain": [*_HOW, "evaluation.*", "slurm.*", "data.shards"],
    "finetune": [*_HOW, "seeds", "score_test", "task.train.*", "task.dev*", "task.test*"],
    "compare": ["*"],
}
WHAT_TO_DO = (
    "A run that an earlier release began would be refused. Let the field default to null and do "
    "then what was done without it, or leave it out of the identity and add it to LEFT_OUT here "
    "(CONTRIBUTING.md, Fields)."
)


def is_left_out(root: str, field: str) -> bool:
    if field in ("task.dev_fraction",):  # of the same beginning as task.dev, whose files they are
        return False
    return any(fnmatchcase(field, pattern) for pattern in LEFT_OUT[root])


def breaks(root: str, old: dict[str, Field], new: dict[str, Field]) -> list[str]:
    """Why configurations or runs of before would be refused, or mean something else."""
    found = []
    for name, field in old.items():
        if name not in new:
            found.append(f"{name} is gone: a configuration that has it is refused")
            continue
        now = new[name]
        if now.get("required") and not field.get("required"):
            found.append(f"{name} is required now: a configuration without it is refused")
        if lost := set(field.get("words", [])) - set(now.get("words", field.get("words", []))):
            found.append(f"{name} takes {', '.join(map(str, lost))} no more")
        if now.get("default") != field.get("default") and not is_left_out(root, name):
            found.append(f"{name} has another default, so a configuration without it is another")
    for name, field in new.items():
        if name in old or any(
            name.startswith(f"{section}.") for section in new.keys() - old.keys()
        ):
            continue  # a new section that may be null takes its fields along
        if field.get("required"):
            found.append(f"{name} is new and required: give it a default. {WHAT_TO_DO}")
        elif is_left_out(root, name):
            continue
        elif "[]" in name:
            found.append(f"{name} is new, in a list, and lists are compared whole. {WHAT_TO_DO}")
        elif "default" not in field or field["default"] is not None:
            found.append(f"{name} is new and not null by default. {WHAT_TO_DO}")
    return found


@pytest.mark.parametrize("root", OLD)
def test_no_field_breaks_an_old_run(root: str) -> None:
    assert breaks(root, OLD[root], list_fields(ROOTS[root].model_json_schema())) == []


@pytest.mark.parametrize(
    ("name", "field", "problem"),
    [
        ("train.lr_floor", None, "is gone"),
        ("train.lr_floor", {"default": 0.1}, "another default"),
        ("train.warmup_steps", {"required": True}, "is required now"),
        ("train.lr_schedule", {"default": "linear", "words": ["linear"]}, "no more"),
        ("train.z_loss", {"default": 0.0}, "not null by default"),
        ("train.z_loss", {}, "not null by default"),  # an empty list or mapping
        ("train.z_loss", {"required": True}, "new and required"),
        ("sparsity.groups[].pattern", {"default": None}, "in a list"),
        ("train.z_loss", {"default": None}, None),
        ("checkpoint.keep_last", {"default": 2}, None),
        ("launch.patience", {"default": 5}, None),
    ],
)
def test_the_rule_finds(name: str, field: Field | None, problem: str | None) -> None:
    new = {key: value for key, value in OLD["pretrain"].items() if key != name}
    if field is not None:
        new[name] = field
    found = breaks("pretrain", OLD["pretrain"], new)
    assert found == [] if problem is None else problem in found[0] and name in found[0]


def test_a_new_section_may_be_null() -> None:
    section = {"regularisation": {"default": None}, "regularisation.weight": {"default": 0.5}}
    assert breaks("pretrain", OLD["pretrain"], {**OLD["pretrain"], **section}) == []
    with pytest.raises(AssertionError):  # always there, it is its fields
        del section["regularisation"]
        assert breaks("pretrain", OLD["pretrain"], {**OLD["pretrain"], **section}) == []


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix.removesuffix("."): value}
    return {k: v for key, one in value.items() for k, v in leaves(one, f"{prefix}{key}.").items()}


@pytest.mark.parametrize(
    ("root", "run"), [("pretrain", "full"), ("finetune", "study/words.sparse.lr0.003/seed-1")]
)
def test_left_out_is_what_an_identity_leaves_out(root: str, run: str) -> None:
    """No more and no less: every other field is in the identity that the old code wrote."""
    identity = json.loads((old_run.FIXTURE / f"runs/{run}/identity.json").read_bytes())
    contents = {"vocab_sha256", "init_fingerprint", "fingerprint"}  # for the paths
    compared = {name for name in leaves(identity) if name.split(".")[-1] not in contents}
    if root == "finetune":  # its dimensions and masks are its source's, its seed one of seeds
        compared = {n for n in compared if n.split(".")[0] not in ("model", "sparsity", "seed")}
    fields = {name.split("[]")[0] for name in OLD[root] if not is_left_out(root, name)}
    sections = {name for name in fields if any(other.startswith(f"{name}.") for other in fields)}
    assert compared == fields - sections


def test_the_job_script_reaches_its_job(tmp_path: Path) -> None:
    """Run by bash, after sed: outside SLURM it reads the configuration and says where it is."""
    folder = old_run.copy_to(tmp_path / "moved")
    (folder / ".venv").symlink_to(Path(sys.prefix))
    there = old_run.read("written.json")["folder"]
    script = folder / "runs/single/slurm/job.sbatch"
    text = script.read_text().replace(there, str(folder))
    assert {line.split("=")[0] for line in text.splitlines() if line.startswith("#SBATCH")} >= {
        "#SBATCH --signal", "#SBATCH --nodes", "#SBATCH --output",
    }  # fmt: skip
    script.write_text(text)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    environment["PYTHONPATH"] = str(ROOT)

    def start() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(script)], env=environment, capture_output=True, text=True, timeout=120
        )

    (config,) = re.findall(r"\S+/config-\w+\.yaml", text)
    assert shlex.split(text.splitlines()[-1])[-1] == config
    done = start()
    assert done.returncode == 2 and "SLURM_JOB_ID is not set" in done.stderr, done
    Path(config).write_text("name: [\n")
    done = start()
    assert done.returncode == 2 and config in done.stderr, done
