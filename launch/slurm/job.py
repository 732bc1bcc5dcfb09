"""The first process of a SLURM job: Ray on the job's nodes, training on Ray, and what comes after.

    python -m launch.slurm.job CONFIG [field=value ...]        pretrain.sbatch becomes this process

    first node      this process -> Ray's head, `sparsebert pretrain`
    further nodes   srun -> launch.slurm.node -> Ray

SIGUSR1, SLURM's warning before the time limit or a preemption, becomes a checkpoint at the step's
end, and then the job queues itself again. A file `stop` in the run folder becomes a checkpoint and
the end. The exit code is the training's.
"""

import os
import signal
import subprocess
import sys
import time
from types import FrameType

from distributed.checkpoint.reading import find_newest
from distributed.errors import BadInput
from distributed.files import write_atomically
from launch.config_loading import load_config
from launch.slurm.allocation import Cluster, SlurmJob, ray_on_all_nodes, say
from launch.slurm.node import RayLost
from training.folder import RunFolder, run_folder_of
from training.stopping import STOPPED_EXIT_CODE

_POLL_SECONDS = 0.2
_MOST_VAIN_STARTS = 3


class SignalRelay:
    """The first signal to this process, passed on to training."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._training: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    @property
    def is_warning(self) -> bool:
        """Whether SLURM wants its nodes back and lets the job go on later."""
        return self.number == signal.SIGUSR1

    def pass_on_to(self, training: "subprocess.Popen[bytes]") -> None:
        """Whoever trains from now on; a request that came before is passed on now."""
        self._training = training
        if self.number is not None:
            training.send_signal(self.number)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            if self._training is not None:
                self._training.send_signal(number)


def run_job(arguments: list[str]) -> int:
    """Train within this job; the exit code."""
    request = SignalRelay()
    # As in sbatch's own options: name=seed-%a makes each member of a job array a run of its own.
    index = os.environ.get("SLURM_ARRAY_TASK_ID", "%a")
    arguments = [argument.replace("%a", index) for argument in arguments]
    arguments.append("launch.address=null")  # the job's own cluster, whatever the file says
    config_file, *overrides = arguments
    folder = run_folder_of(load_config(config_file, overrides).resolved())
    job = SlurmJob.from_environment()
    say(f"job {job.id}, start {job.restarts + 1}, on {', '.join(job.nodes)}")
    first_step = _newest_step(folder)
    logs = folder.path / "slurm" / f"job-{job.id}-start-{job.restarts + 1}"
    try:
        with ray_on_all_nodes(job, logs, interrupted=lambda: request.number is not None) as cluster:
            code = _train(arguments, cluster, request)
            is_warned = request.is_warning  # one that comes later finds nothing to save
    except RayLost as lost:
        if request.number is None:
            say(f"error: {lost}")
        if request.is_warning or (request.number is None and _newest_step(folder) > first_step):
            job.requeue()
        return 1
    except InterruptedError:
        code, is_warned = STOPPED_EXIT_CODE, request.is_warning
    was_ended = code == STOPPED_EXIT_CODE or code < 0 or code == 128 + signal.SIGTERM
    if is_warned and was_ended:
        if _is_stuck(folder, job, first_step):
            say(
                f"error: {_MOST_VAIN_STARTS} starts in a row saved nothing new before SLURM wanted "
                "its nodes back: raise slurm.time, or save more often (checkpoint.interval_steps)"
            )
            return 1
        job.requeue()
    return code if code >= 0 else 128 - code


def _train(arguments: list[str], cluster: Cluster, request: SignalRelay) -> int:
    """Run `sparsebert pretrain` on the cluster; its exit code.

    Raises:
        RayLost: it cannot go on.
        InterruptedError: a signal came before it began.
    """
    if request.number is not None:
        raise InterruptedError
    training = subprocess.Popen(
        [sys.executable, "-m", "launch", "pretrain", *arguments],
        env={**os.environ, "RAY_ADDRESS": cluster.address},
    )
    request.pass_on_to(training)
    loss: str | None = None
    while training.poll() is None and loss is None:
        time.sleep(_POLL_SECONDS)
        loss = cluster.find_loss()
    if loss is None:
        return training.returncode
    # Without its cluster it would wait for what does not come back.
    training.kill()
    training.wait()
    raise RayLost(loss)


def _is_stuck(folder: RunFolder, job: SlurmJob, first_step: int) -> bool:
    """Whether this start of the job was one too many that saved nothing new."""
    file = folder.path / "slurm" / f"job-{job.id}-vain-starts"
    if _newest_step(folder) > first_step:
        file.unlink(missing_ok=True)
        return False
    vain = len(file.read_bytes()) + 1 if file.exists() else 1
    write_atomically(file, b"." * vain)
    return vain >= _MOST_VAIN_STARTS


def _newest_step(folder: RunFolder) -> int:
    newest, _ = find_newest(folder.checkpoints)
    return newest.step if newest is not None else 0


def main() -> int:
    """Run the job and say what is wrong with its input."""
    if len(sys.argv) < 2:
        print("usage: python -m launch.slurm.job CONFIG [field=value ...]", file=sys.stderr)
        return 2
    try:
        return run_job(sys.argv[1:])
    except BadInput as error:
        print("error:", error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
