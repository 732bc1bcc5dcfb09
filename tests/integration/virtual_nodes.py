"""Nodes of a cluster on one machine: each with an IP address, host name and processes of its own.

A node is a process in namespaces of its own (network, processes, host name, mounts), joined to the
others by a bridge. All see the machine's files, as on storage that a cluster shares.
"""

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

# The node's first process: its end is the end of all the others, as when the power fails. Its own
# name means 127.0.1.1, as Debian has it, and the other nodes have none: worse than most clusters.
_INIT = """
hostname "$1"
mount -t tmpfs -o size=1g tmpfs /dev/shm
mount --bind "$2" /etc/hosts
ip link set lo up
trap exit TERM
while :; do sleep 3600 & wait; done
"""


def why_not() -> str | None:
    """Why this machine cannot have virtual nodes; None if it can."""
    if os.geteuid() != 0:
        return "virtual nodes need root"
    for tool in ("ip", "nsenter", "unshare"):
        if shutil.which(tool) is None:
            return f"virtual nodes need `{tool}` (Debian: iproute2, util-linux)"
    name = f"sbt{secrets.token_hex(3)}"
    attempts = [
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "true"],
        ["ip", "link", "add", name, "type", "bridge"],
        ["ip", "link", "del", name],
    ]
    for attempt in attempts:
        done = subprocess.run(attempt, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"virtual nodes cannot be made here: {done.stderr.strip()}"
    return None


@dataclass
class VirtualNode:
    name: str
    address: str
    pid: int  # of its first process
    cable: str  # its end on this machine

    def inside(self, program: Sequence[str | Path]) -> list[str]:
        """The command that runs `program` on this node."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--ipc", "--pid"]
        return [*enter, "--wd=/", *map(str, program)]

    def run(self, *program: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.inside(program), capture_output=True, text=True, timeout=120, **options
        )

    def processes(self) -> list[str]:
        """Command lines of what runs on this node, less its first process and that one's sleep."""
        listed = self.run("ps", "-e", "-o", "pid=,args=", check=True).stdout.splitlines()
        lines = [line.split(maxsplit=1) for line in listed]
        return [args for pid, args in lines if pid != "1" and args.split()[0] not in _OWN]

    def runs(self, word: str) -> bool:
        """Whether a process of this node has `word` in its command line."""
        return any(word in process for process in self.processes())

    def kill_everything(self) -> None:
        """All but its first process: the node stays and can be used again."""
        # Its sleep is started again; the shell that says this is spared, as kill(2) has it.
        self.run("sh", "-c", "kill -9 -1")

    def unplug(self) -> None:
        """From here on nothing reaches it and it reaches nobody; nobody is told."""
        _ip("link", "set", self.cable, "down")

    def plug_in(self) -> None:
        _ip("link", "set", self.cable, "up")

    def cut_power(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


_OWN = ("sleep", "ps")


@dataclass
class VirtualNodes:
    gateway: str  # this machine's own address on the bridge
    nodes: list[VirtualNode] = field(default_factory=list)

    def __getitem__(self, index: int) -> VirtualNode:
        return self.nodes[index]


@contextmanager
def virtual_nodes(count: int, folder: Path) -> Iterator[VirtualNodes]:
    """Nodes n1, n2, ... while inside; afterwards nothing of them is left."""
    tag = secrets.token_hex(3)
    net = _free_network()
    bridge = f"sbb{tag}"
    _ip("link", "add", bridge, "type", "bridge")
    made = VirtualNodes(f"{net}.1")
    try:
        _ip("addr", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number in range(1, count + 1):
            name, address = f"n{number}", f"{net}.{10 + number}"
            hosts = folder / f"hosts-{name}"
            hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
            pid, cable = _start(name, hosts), f"sbv{tag}{number}"
            made.nodes.append(VirtualNode(name, address, pid, cable))
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
            _ip("link", "set", cable, "master", bridge, "up")
            node = made.nodes[-1]
            for command in (
                ["ip", "addr", "add", f"{address}/24", "dev", "eth0"],
                ["ip", "link", "set", "eth0", "up"],
                ["ip", "route", "add", "default", "via", f"{net}.1"],
            ):
                node.run(*command, check=True)
        yield made
    finally:
        for node in made.nodes:
            if psutil.pid_exists(node.pid):
                node.cut_power()
        _ip("link", "del", bridge)


def wait_until(
    condition: Callable[[], Any], what: str, *, seconds: float = 240.0, state: Any = ""
) -> None:
    """Poll `condition`; on failure `state`, a value or a function, is in the message."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(
                f"{what}: waited {seconds} s\n{state() if callable(state) else state}"
            )
        time.sleep(0.1)


def _start(name: str, hosts: Path) -> int:
    spaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"]
    outer = subprocess.Popen(
        ["unshare", *spaces, "bash", "-c", _INIT, "init", name, str(hosts)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def first_process() -> list[int]:
        return [child.pid for child in psutil.Process(outer.pid).children()]

    def is_ready() -> bool:
        enter = ["nsenter", f"--target={first_process()[0]}", "--uts", "--mount", "hostname"]
        done = subprocess.run(enter, capture_output=True, text=True, check=False)
        return done.stdout.strip() == name

    wait_until(lambda: first_process() and is_ready(), f"the virtual node {name}", seconds=20)
    return first_process()[0]


def _free_network() -> str:
    """The first three numbers of a /24 network that this machine has no way to."""
    taken = subprocess.run(["ip", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    free = [n for n in range(1, 250) if f" 10.77.{n}." not in taken]
    # At random: two tests that choose at the same time should not choose the same one.
    return f"10.77.{secrets.choice(free)}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
