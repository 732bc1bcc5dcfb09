"""`sparsebert submit --slurm`: writes a job script that a person can read and edit, submits it."""

import hashlib
import math
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from bert.config import PretrainConfig
from distributed.errors import BadInput
from distributed.files import write_atomically
from training.config import SlurmConfig, dump_yaml
from training.folder import run_folder_of


def render_script(config: PretrainConfig, *, config_file: Path) -> str:
    """The job script of the run of `config`.

    Args:
        config: with absolute paths.
        config_file: where the job will read it from.

    Raises:
        BadInput: what it asks for does not fit together.
    """
    slurm, launch = config.slurm, config.launch
    folder = run_folder_of(config)
    cpus = find_cpus_per_node(
        slurm, num_workers=launch.most_workers, cpus_per_worker=launch.cpus_per_worker
    )
    gpus = slurm.gpus_per_node
    if gpus is None and launch.use_gpu is True:
        gpus = -(-launch.most_workers // slurm.nodes)
    asked = {
        "job-name": config.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpus,
        "gpus-per-node": gpus or None,
        "mem": slurm.memory_per_node,
        "time": slurm.time,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "signal": f"B:USR1@{slurm.warning_seconds}",
        "output": folder.path / "slurm" / "%j.out",
        "open-mode": "append",
    }
    options = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    options += ["--requeue", *(["--exclusive"] if slurm.exclusive else [])]
    python = [sys.executable, "-m", "launch.slurm.job", str(config_file)]
    return "\n".join(
        [
            "#!/bin/bash",
            "# Written by `sparsebert submit --slurm`. Edit it as you like and start it with:",
            f"#     sbatch {folder.path / 'slurm' / 'job.sbatch'}",
            "# Before the time limit, or when it is preempted, the run saves a checkpoint, stops",
            "# and queues itself again, until it is done.",
            *(f"#SBATCH {option}" for option in options),
            "",
            f"cd {shlex.quote(str(Path.cwd()))} || exit",
            *slurm.setup,
            "# exec: SLURM's signals reach this process and not a shell that waits for it.",
            f"exec {shlex.join(python)}",
            "",
        ]
    )


def submit_to_slurm(config: PretrainConfig, *, print_only: bool) -> int:
    """Write the script into the run folder and submit it, or only print it; the exit code.

    Raises:
        BadInput: SLURM is not here or refuses the job.
    """
    folder = run_folder_of(config)
    home = folder.path / "slurm"
    text = dump_yaml(config).encode()
    # Of its content: a job that queues itself again finds what it was submitted with.
    config_file = home / f"config-{hashlib.sha256(text).hexdigest()[:8]}.yaml"
    script = render_script(config, config_file=config_file)
    if print_only:
        print(script, end="")
        return 0
    if shutil.which("sbatch") is None:
        raise BadInput(
            "sbatch is not on this machine: submit from a login node of the SLURM cluster, or use "
            "--print to see the job script"
        )
    home.mkdir(parents=True, exist_ok=True)
    write_atomically(config_file, text)
    write_atomically(home / "job.sbatch", script.encode())
    done = subprocess.run(
        ["sbatch", "--parsable", str(home / "job.sbatch")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BadInput(f"SLURM refuses {home}/job.sbatch: {' '.join(done.stderr.split())}")
    job = done.stdout.strip().split(";")[0]
    print(
        f"job {job} is submitted: {home}/job.sbatch\n"
        f"follow:         tail -F {home}/{job}.out\n"
        f"save and stop:  touch {folder.stop_file}\n"
        f"stop at once:   scancel {job}\n"
        f"continue:       sbatch {home}/job.sbatch"
    )
    return 0


def find_cpus_per_node(slurm: SlurmConfig, *, num_workers: int, cpus_per_worker: float) -> int:
    """CPUs to ask for on each node.

    Raises:
        BadInput: there are more nodes than workers.
    """
    if slurm.nodes > num_workers:
        raise BadInput(
            f"slurm.nodes is {slurm.nodes} and launch.num_workers is {num_workers}: each node "
            "needs a worker, so lower the first or raise the second"
        )
    return slurm.cpus_per_node or math.ceil(math.ceil(num_workers / slurm.nodes) * cpus_per_worker)
