"""What is asked of SLURM, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bert.config import PretrainConfig
from distributed.errors import BadInput
from launch.config_loading import load_config
from launch.slurm.script import find_cpus_per_node, render_script
from training.config import SlurmConfig


@pytest.mark.parametrize(
    ("slurm", "num_workers", "cpus_per_worker", "cpus"),
    [
        ({"nodes": 2}, 4, 1.0, 2),
        ({"nodes": 2}, 3, 1.0, 2),  # 2 + 1: as much as the fuller node needs
        ({"nodes": 1}, 3, 0.5, 2),
        ({"nodes": 2, "cpus_per_node": 48}, 4, 1.0, 48),
    ],
)
def test_cpus(slurm: dict[str, Any], num_workers: int, cpus_per_worker: float, cpus: int) -> None:
    config = SlurmConfig.model_validate(slurm)
    found = find_cpus_per_node(config, num_workers=num_workers, cpus_per_worker=cpus_per_worker)
    assert found == cpus


def test_more_nodes_than_workers() -> None:
    with pytest.raises(BadInput, match=r"slurm.nodes is 3 and launch.num_workers is 2"):
        find_cpus_per_node(SlurmConfig(nodes=3), num_workers=2, cpus_per_worker=1)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "a config.yaml"
    config = {
        "name": "x",
        "model": {"vocab": "v.txt"},
        "data": {"shards": "d"},
        "train": {
            "total_steps": 9,
            "global_batch_rows": 8,
            "micro_batch_rows": 1,
            "learning_rate": 1,
        },
        "launch": {"num_workers": 4, "runs_dir": "/shared/runs"},
    }
    file.write_text(yaml.safe_dump(config))
    return file


def load(config_file: Path, *overrides: str) -> PretrainConfig:
    return load_config(config_file, overrides)


def options(script: str) -> list[str]:
    return [line.split()[1] for line in script.splitlines() if line.startswith("#SBATCH")]


def test_the_script_says_what_was_asked(config_file: Path) -> None:
    asked = ["slurm.nodes=2", "slurm.time=24:00:00", "slurm.account=lab", "launch.use_gpu=true"]
    asked += ["slurm.memory_per_node=64G", "slurm.exclusive=true", "slurm.setup=[module load cuda]"]
    config = load(config_file, *asked)
    script = render_script(config, config_file=config_file)
    assert options(script) == [
        "--job-name=x",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=2",
        "--gpus-per-node=2",
        "--mem=64G",
        "--time=24:00:00",
        "--account=lab",
        "--signal=B:USR1@300",
        "--output=/shared/runs/x/slurm/%j.out",
        "--open-mode=append",
        "--requeue",
        "--exclusive",
    ]
    *_, setup, comment, start = script.splitlines()
    assert setup == "module load cuda" and comment.startswith("# ")
    assert start.startswith("exec ") and start.endswith(f"'{config_file}'")


def test_no_gpu_is_asked_for_unless_it_is_said(config_file: Path) -> None:
    script = render_script(load(config_file), config_file=config_file)
    assert not [option for option in options(script) if "gpus" in option]
    script = render_script(load(config_file, "slurm.gpus_per_node=3"), config_file=config_file)
    assert "--gpus-per-node=3" in options(script)


@pytest.mark.parametrize("value", ["a b", "a\nrm -rf x", "$(x)", "a;b", "''"])
def test_what_would_not_stay_one_word_is_refused(value: str, config_file: Path) -> None:
    with pytest.raises(BadInput, match="not one word"):
        load(config_file, f"slurm.partition={yaml.safe_dump(value).removesuffix('...').strip()}")


@pytest.mark.parametrize("time", ["5", "4:59", "5:00", "0:05:00", "0-0:5", "00:00:300"])
def test_a_time_limit_that_leaves_no_time(time: str, config_file: Path) -> None:
    with pytest.raises(BadInput, match=r"slurm.time .* is no longer than slurm.warning_seconds"):
        load(config_file, f"slurm.time={time}")


@pytest.mark.parametrize("time", ["6", "5:01", "0:05:01", "1-0", "0-1", "0-0:6", "UNLIMITED"])
def test_a_time_limit_that_leaves_some(time: str, config_file: Path) -> None:
    assert load(config_file, f"slurm.time={time}").slurm.time == time


@pytest.mark.parametrize("time", ["10", "1:30:00", "24:00:00", "2-12", "59:59"])
def test_times_stay_as_they_are_written(time: str, config_file: Path) -> None:
    """YAML 1.1 would read 24:00:00 as 86400, which SLURM takes for minutes."""
    assert load(config_file, f"slurm.time={time}").slurm.time == time
    config = yaml.safe_load(config_file.read_text())
    config_file.write_text(yaml.safe_dump(config) + f"slurm:\n  time: {time}\n")
    assert load(config_file).slurm.time == time
