"""A real Ray cluster on virtual nodes: a head without CPUs, worker nodes of 1, 2, 3... CPUs."""

import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.commands import environment
from tests.integration.virtual_nodes import VirtualNode, VirtualNodes, wait_until

_PORT, _DASHBOARD_PORT = 6379, 8265


@dataclass
class RayNodes:
    env: dict[str, str]  # what reaches the cluster
    address: str
    dashboard: str
    head_folder: Path
    start_again: Callable[[VirtualNode], None]  # a worker node that was lost

    def uploads(self) -> list[Path]:
        """Where the head keeps what jobs brought."""
        return list(self.head_folder.glob("session_2*/runtime_resources/working_dir_files/*"))


@contextmanager
def ray_nodes(nodes: VirtualNodes) -> Iterator[RayNodes]:
    """Ray on all `nodes` while inside, closed by a token; the nodes have none of our packages."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # its sockets need a short path
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    # The nodes' python is the one that runs the tests.
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin:/usr/sbin:/sbin"
    env = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), PATH=path)
    env["GLOO_SOCKET_IFNAME"] = "eth0"  # as docs/ray.md advises where names resolve to 127.0.1.1
    del env["PYTHONPATH"]
    head, *others = nodes.nodes
    started: dict[str, subprocess.Popen[bytes]] = {}

    def start(node: VirtualNode, *options: str) -> None:
        common = [f"--node-ip-address={node.address}", f"--temp-dir={folder / node.name}"]
        common += ["--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats"]
        program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        (folder / node.name).mkdir(exist_ok=True)
        with open(folder / f"{node.name}.log", "ab") as log:
            started[node.name] = subprocess.Popen(
                node.inside([*program, *common, *options]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
            )

    def await_start(node: VirtualNode, *options: str) -> None:
        def is_up() -> bool:
            # On a busy machine Ray gives up on its own agents; a person would try again.
            if started[node.name].poll() is not None:
                start(node, *options)
            return "Ray runtime started" in (folder / f"{node.name}.log").read_text()

        wait_until(is_up, f"Ray on {node.name}", state=logs)

    def logs() -> str:
        return "\n".join(file.read_text() for file in sorted(folder.glob("*.log")))

    try:
        for node in nodes.nodes:
            _hide_project(node)
        as_head = ["--head", f"--port={_PORT}", "--num-cpus=0"]
        as_head += [f"--dashboard-host={head.address}", f"--dashboard-port={_DASHBOARD_PORT}"]
        start(head, *as_head)
        await_start(head, *as_head)
        as_worker = {
            node.name: [f"--address={head.address}:{_PORT}", f"--num-cpus={cpus}"]
            for cpus, node in enumerate(others, start=1)
        }
        for node in others:
            start(node, *as_worker[node.name])
        for node in others:
            await_start(node, *as_worker[node.name])
        url = f"http://{head.address}:{_DASHBOARD_PORT}"

        def start_again(node: VirtualNode) -> None:
            (folder / f"{node.name}.log").write_text("")
            start(node, *as_worker[node.name])

        yield RayNodes(env, f"{head.address}:{_PORT}", url, folder / head.name, start_again)
    finally:
        for process in started.values():
            process.kill()
        for node in nodes.nodes:
            node.cut_power()
        for process in started.values():
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _hide_project(node: VirtualNode) -> None:
    """On this node, our packages are not installed: only what they depend on."""
    for hook in Path(sysconfig.get_path("purelib")).glob("__editable__.sparsebert*.pth"):
        node.run("mount", "--bind", "/dev/null", hook, check=True)
    told = node.run(sys.executable, "-c", "import launch", env=environment() | {"PYTHONPATH": ""})
    assert "No module named 'launch'" in told.stderr
