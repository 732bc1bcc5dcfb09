"""A Ray cluster of a run's own, on this machine, with as few processes as Ray allows."""

import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed.errors import first_line

QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
_STARTS = 3


def start_own_cluster(folder: Path) -> None:
    """Start it and connect to it; its files are in `folder`, which is private."""
    print("starting a local Ray cluster", flush=True)
    # A token of this cluster's own: access stays closed and ~/.ray is left alone.
    token = folder / "ray_token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # Fewer processes to start. Nobody takes this machine's node back; each worker that Ray would
    # start before it is asked for has another environment than ours; nobody reads Ray's metrics.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    import ray  # only now: it reads these variables when it is imported

    for starts_left in reversed(range(_STARTS)):
        try:
            with _no_dashboard() as port:
                ray.init(
                    address="local",  # without it, Ray joins whatever cluster it finds here
                    include_dashboard=False,
                    dashboard_host="127.0.0.1",
                    dashboard_port=port,
                    object_store_memory=200_000_000,
                    _temp_dir=str(folder),
                    **QUIET,
                )
            return
        except Exception as error:  # of many types: on a busy machine Ray gives up on its agents
            ray.shutdown()
            if not starts_left:
                raise
            print(f"the Ray cluster did not start ({first_line(error)}); trying again", flush=True)


@contextlib.contextmanager
def _no_dashboard() -> Iterator[int]:
    """A port at which Ray can start no dashboard.

    `include_dashboard=False` only takes the pages away (2.60): the process starts, and ray.init
    waits for it, two seconds on two cores. Ray goes on without one where the port is not free.
    """
    log = logging.getLogger("ray._private.services")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        log.addFilter(_is_not_about_the_port)
        try:
            yield taken.getsockname()[1]
        finally:
            log.removeFilter(_is_not_about_the_port)


def _is_not_about_the_port(record: logging.LogRecord) -> bool:
    return "already occupied" not in record.getMessage()
