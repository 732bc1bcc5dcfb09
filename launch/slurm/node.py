"""Ray on one node of a SLURM job: started beside other Rays, ended without trace.

    python -m launch.slurm.node HEAD_HOST:PORT LOG_FOLDER      srun starts it on each further node

Nothing is at a fixed place: ports are the system's choice and files lie in a new private folder, so
other jobs, users and seeds on the same node are not disturbed. It ends when its input does, for
srun passes the end of its own input on to all nodes: also when the job's first process is killed.
"""

import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from launch.cluster.nodes import short_temporary_folder

_START_ATTEMPTS = 3
_END_SECONDS = 40.0  # Ray drains a node for up to 30 before it ends
_POLL_SECONDS = 0.2
_REMOVALS = 10
_OBJECT_STORE_BYTES = 200_000_000


class RayLost(RuntimeError):
    """Ray did not start on a node, or ended there before training did."""


@dataclass(frozen=True)
class RayNode:
    """The Ray processes of one node."""

    process: "subprocess.Popen[bytes]"
    folder: Path

    @property
    def address(self) -> str | None:
        """HOST:PORT of the cluster; None while it starts."""
        try:
            return (self.folder / "ray_current_cluster").read_text().strip() or None
        except FileNotFoundError:
            return None

    def has_ended(self) -> bool:
        """Whether Ray ended by itself, as when one of its processes died."""
        return self.process.poll() is not None


@contextmanager
def ray_node(
    *, own_address: str, head: str | None, log_folder: Path, interrupted: Callable[[], bool]
) -> Iterator[RayNode]:
    """Ray on this node while inside; afterwards its logs are in `log_folder`.

    Args:
        own_address: the IP address by which the other nodes reach this one.
        head: HOST:PORT of the cluster to join; None starts one.
        log_folder: on storage that outlives the job.
        interrupted: asked while Ray starts.

    Raises:
        RayLost: it does not start.
        InterruptedError: while it started, `interrupted` became true.
    """
    # Ray gives its own agents 15 seconds to import what they need, hard-coded, and dies of a slow
    # file system: https://github.com/ray-project/ray/issues/65983.
    for attempt in range(1, _START_ATTEMPTS + 1):
        with _ray_processes(own_address=own_address, head=head, log_folder=log_folder) as node:
            while node.address is None and not node.has_ended():
                if interrupted():
                    raise InterruptedError
                time.sleep(_POLL_SECONDS)
            if node.address is not None:
                yield node
                return
        print(f"Ray did not start at {own_address}, attempt {attempt}", flush=True)
    raise RayLost(f"Ray does not start at {own_address}: its logs are in {log_folder}")


@contextmanager
def _ray_processes(*, own_address: str, head: str | None, log_folder: Path) -> Iterator[RayNode]:
    log_folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sparsebert-", dir=short_temporary_folder()))
    try:
        with open(log_folder / "ray-start.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
                + _options(own_address=own_address, head=head, folder=folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_environment(own_address)},
            )
        try:
            yield RayNode(process, folder)
        finally:
            _end(process)
    finally:
        for logs in folder.glob("session_2*/logs"):
            with suppress(OSError):  # a full disk: what came of the run is worth more
                shutil.copytree(logs, log_folder, symlinks=True, dirs_exist_ok=True)
        _remove(folder)


def _remove(folder: Path) -> None:
    """What still ends may write there once more."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_POLL_SECONDS)


def _options(*, own_address: str, head: str | None, folder: Path) -> list[str]:
    options = {
        "node-ip-address": own_address,
        "temp-dir": folder,
        "object-store-memory": _OBJECT_STORE_BYTES,
        # 0 is a port of the system's choice; what is left out has that for a default.
        "min-worker-port": 0,
        "max-worker-port": 0,
        "dashboard-agent-listen-port": 0,
    }
    if cpus := os.environ.get("SLURM_CPUS_ON_NODE"):
        options["num-cpus"] = cpus  # otherwise Ray takes all of a shared node
    if head is None:
        options |= {"port": 0, "include-dashboard": "false"}
        options["ray-client-server-port"] = _find_free_port()  # cannot be 0, or off
    else:
        options["address"] = head
    chosen = [f"--{name}={value}" for name, value in options.items()]
    return [
        *chosen,
        "--disable-usage-stats",
        "--log-color=false",
        *(["--head"] if head is None else []),
    ]


def _environment(own_address: str) -> dict[str, str]:
    """For the processes that train on this node."""
    # Without it, gloo takes the address that the node's own name has, which is often 127.0.1.1.
    interface = os.environ.get("GLOO_SOCKET_IFNAME") or find_interface(own_address)
    return {"GLOO_SOCKET_IFNAME": interface} if interface else {}


def find_own_address(other: str) -> str:
    """This machine's IP address as seen from `other`, a host name or address; sends nothing.

    Raises:
        OSError: `other` cannot be resolved, or there is no way to it.
    """
    family, kind, _, _, address = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as asking:
        asking.connect(address)
        return str(asking.getsockname()[0])


def find_interface(address: str) -> str | None:
    """The network interface that has the IP address."""
    wanted = ipaddress.ip_address(address)
    for interface, entries in psutil.net_if_addrs().items():
        internet = [e for e in entries if e.family in (socket.AF_INET, socket.AF_INET6)]
        if wanted in [ipaddress.ip_address(e.address.split("%")[0]) for e in internet]:
            return str(interface)
    return None


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End Ray and all that it started."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(started, timeout=2)
    for left in alive:
        left.kill()


def main() -> int:
    """Hold Ray on this node until the input ends; the exit code."""
    head, logs = sys.argv[1:]
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())

    def read_input() -> None:
        while os.read(0, 4096):
            pass
        over.set()

    threading.Thread(target=read_input, name="input", daemon=True).start()
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    own = find_own_address(head.rpartition(":")[0].strip("[]"))
    log_folder = Path(logs) / name
    try:
        with ray_node(
            own_address=own, head=head, log_folder=log_folder, interrupted=over.is_set
        ) as node:
            while not over.wait(_POLL_SECONDS):
                if node.has_ended():
                    raise RayLost(f"Ray ended at {own}: its logs are in {log_folder}")
    except InterruptedError:
        pass
    except RayLost as lost:
        print(lost, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
