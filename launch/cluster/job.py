"""`sparsebert submit --ray`: a run as a job of a Ray cluster that has our dependencies and not us.

this machine    packages + configuration -> upload;  the job's log -> terminal
the cluster     `python -m launch pretrain config.yaml`, where Ray places jobs: the head
"""

import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert.config import PretrainConfig
from distributed.errors import BadInput
from training.config import dump_yaml
from training.folder import run_folder_of
from training.stopping import STOPPED_EXIT_CODE

_PROJECT = Path(__file__).resolve().parent.parent.parent
_PACKAGES = ("distributed", "sparsity", "training", "bert", "launch", "sparsebert")
# How long Ray waits for a job to stop before it kills it: a step and a checkpoint. Its own 3
# seconds are too few for either.
_STOP_SECONDS = 600
_RECONNECTIONS = 20
_RECONNECT_SECONDS = 3.0


def submit_to_ray(config: PretrainConfig, *, address: str, detach: bool) -> int:
    """Submit the run and follow it to its end; the job's exit code.

    Args:
        config: with absolute paths, which must mean the same on all nodes of the cluster.
        address: of the cluster's dashboard: HOST:PORT or a URL.
        detach: print how to follow it instead, and return 0.

    Raises:
        BadInput: the cluster cannot be reached or used.
    """
    client = connect(address)
    job = _submit(client, config)
    url = client.get_address()
    print(
        f"job {job} is submitted, run folder {run_folder_of(config).path}\n"
        f"follow:         ray job logs --follow --address {url} {job}\n"
        f"save and stop:  ray job stop --address {url} {job}\n"
        "continue:       the same command again",
        flush=True,
    )
    return 0 if detach else asyncio.run(_follow(client, job))


def connect(address: str) -> Any:
    """A client of the cluster's job interface.

    Raises:
        BadInput: nothing usable answers.
    """
    url = address if "://" in address else f"http://{address}"
    if not url.startswith(("http://", "https://")):
        raise BadInput(
            f"--ray is {address}: give the address of the cluster's dashboard, such as "
            "http://HOST:8265"
        )
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
    try:
        return JobSubmissionClient(url)
    except ConnectionError as error:
        raise BadInput(
            f"no Ray dashboard answers at {url}: give the address of the cluster's dashboard (port "
            "8265 unless it was started with another), through a tunnel if it is not open here"
        ) from error
    except ray.exceptions.AuthenticationError as error:
        raise BadInput(
            f"the Ray cluster at {url} wants another token: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        ) from error
    except RuntimeError as error:
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise BadInput(f"the Ray cluster at {url} refuses to be used ({reason})") from error


@contextmanager
def upload_folder(config: PretrainConfig) -> Iterator[Path]:
    """A folder with what a node needs: our packages and this configuration, under a megabyte."""
    with tempfile.TemporaryDirectory(prefix="sparsebert-upload-") as made:
        folder = Path(made)
        for package in _PACKAGES:
            shutil.copytree(
                _PROJECT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
            )
        (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
        yield folder


def _submit(client: Any, config: PretrainConfig) -> str:
    # The cluster that the job runs on is the one that it trains on.
    launch = config.launch.model_copy(update={"address": None})
    with upload_folder(config.model_copy(update={"launch": launch})) as folder:
        try:
            return str(
                client.submit_job(
                    entrypoint="exec python -m launch pretrain config.yaml",
                    runtime_env={
                        "working_dir": str(folder),
                        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
                    },
                    metadata={"name": config.name},
                )
            )
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise BadInput(f"the Ray cluster refuses the job ({reason})") from error


async def _follow(client: Any, job: str) -> int:
    """Print the job's log until it ends; its exit code. The first signal stops the job."""
    loop = asyncio.get_running_loop()
    left = asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stopping.is_set():
            left.set()
            return
        stopping.set()
        print(f"{number.name}: stopping the job, again to leave it alone", flush=True)
        loop.run_in_executor(None, client.stop_job, job)

    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    following = asyncio.create_task(_print_log(client, job))
    leaving = asyncio.create_task(left.wait())
    await asyncio.wait([following, leaving], return_when=asyncio.FIRST_COMPLETED)
    if not following.done():
        following.cancel()
        print(f"job {job} is no longer followed, and stops when it has saved", flush=True)
        return 128 + signal.SIGINT
    leaving.cancel()
    await following
    return await _exit_code(client, job)


async def _print_log(client: Any, job: str) -> None:
    """Print the job's log until the job ends, over broken connections too."""
    printed = failures = 0
    while failures < _RECONNECTIONS:
        received, before = 0, printed
        try:
            async for text in client.tail_job_logs(job):
                new = text[max(0, printed - received) :]
                received += len(text)
                printed = max(printed, received)
                print(new, end="", flush=True)
        except (OSError, RuntimeError):
            pass  # asked anew below: a connection through a tunnel breaks now and then
        status = await _status(client, job)
        if status is not None and status.is_terminal():
            return
        failures = 0 if printed > before else failures + 1  # a proxy may cut long connections
        await asyncio.sleep(_RECONNECT_SECONDS)


async def _status(client: Any, job: str) -> Any | None:
    try:
        return await asyncio.to_thread(client.get_job_status, job)
    except (OSError, RuntimeError):
        return None


async def _exit_code(client: Any, job: str) -> int:
    from ray.job_submission import JobStatus

    try:
        info = await asyncio.to_thread(client.get_job_info, job)
    except (OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(
            f"error: the cluster is out of reach ({reason}); the job {job} may still run",
            file=sys.stderr,
        )
        return 1
    if not info.status.is_terminal():
        print(f"error: the log of job {job} broke off, and it still runs", file=sys.stderr)
        return 1
    if info.status == JobStatus.STOPPED:  # Ray keeps no exit code of a job that it stopped
        return STOPPED_EXIT_CODE
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    if info.status != JobStatus.SUCCEEDED:
        print(f"error: job {job} is {info.status}: {info.message}", file=sys.stderr)
    return 0 if info.status == JobStatus.SUCCEEDED else 1
