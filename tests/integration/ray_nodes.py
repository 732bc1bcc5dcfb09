"""A real Ray cluster on virtual nodes: a head without CPUs, and a worker node of one CPU each."""

import secrets
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
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
    started: list[subprocess.Popen[bytes]] = []

    def start(node: VirtualNode, *options: str) -> None:
        _hide_project(node)
        common = [f"--node-ip-address={node.address}", f"--temp-dir={folder / node.name}"]
        common += ["--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats"]
        program = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        (folder / node.name).mkdir()
        with open(folder / f"{node.name}.log", "wb") as log:
            started.append(
                subprocess.Popen(
                    node.inside([*program, *common, *options]),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=env,
                )
            )

    def is_up(node: VirtualNode) -> bool:
        return "Ray runtime started" in (folder / f"{node.name}.log").read_text()

    def logs() -> str:
        return "\n".join(file.read_text() for file in sorted(folder.glob("*.log")))

    try:
        dashboard = [f"--dashboard-host={head.address}", f"--dashboard-port={_DASHBOARD_PORT}"]
        start(head, "--head", f"--port={_PORT}", "--num-cpus=0", *dashboard)
        wait_until(lambda: is_up(head), "Ray's head", state=logs)
        for node in others:
            start(node, f"--address={head.address}:{_PORT}", "--num-cpus=1")
        for node in others:
            wait_until(lambda: is_up(node), f"Ray on {node.name}", state=logs)  # noqa: B023
        url = f"http://{head.address}:{_DASHBOARD_PORT}"
        yield RayNodes(env, f"{head.address}:{_PORT}", url, folder / head.name)
    finally:
        for process in started:
            process.kill()
        for node in nodes.nodes:
            node.cut_power()
        for process in started:
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _hide_project(node: VirtualNode) -> None:
    """On this node, our packages are not installed: only what they depend on."""
    for hook in Path(sysconfig.get_path("purelib")).glob("__editable__.sparsebert*.pth"):
        node.run("mount", "--bind", "/dev/null", hook, check=True)
    told = node.run(sys.executable, "-c", "import launch", env=environment() | {"PYTHONPATH": ""})
    assert "No module named 'launch'" in told.stderr
