"""A real SLURM on virtual nodes: a controller and authentication here, a slurmd on each node."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.integration.commands import ROOT, environment
from tests.integration.virtual_nodes import VirtualNode, VirtualNodes, wait_until

_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
_CONFIG = """
ClusterName=test
SlurmctldHost={host}({gateway})
SlurmctldPort={port}
SlurmdPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job starts once its credential has expired: 2 minutes unless told otherwise.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=3,bf_interval=3
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
KillWait=10
MinJobAge=3600
SlurmdTimeout=15
JobRequeue=1
PropagateResourceLimits=NONE
"""


def why_not() -> str | None:
    """Why this machine cannot run SLURM; None if it can."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"SLURM needs {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    return None


@dataclass
class Slurm:
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        """Of a user at the login node, whose jobs keep their files here."""
        return environment(SLURM_CONF=str(self.folder / "slurm.conf"), TMPDIR=str(self.folder))

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            env=self.env,
            cwd=ROOT,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says, field by field."""
        described = self.run("scontrol", "show", "job", number, "--oneliner")
        fields = (word.partition("=") for word in described.split())
        return {name: value for name, _, value in fields}

    def start_node(self, node: VirtualNode) -> None:
        """SLURM's daemon on that node."""
        node.run("slurmd", "-N", node.name, env=self.env, check=True)

    def log(self) -> str:
        return "".join(file.read_text()[-3000:] for file in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm_cluster(nodes: VirtualNodes, *, cpus: int = 2) -> Iterator[Slurm]:
    """SLURM with a partition `main` of all `nodes` while inside."""
    # Not below pytest's folder, which is closed to others: munge asks for an open way.
    # Its name is short, for Ray's sockets in it.
    folder = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    slurm = Slurm(folder)
    try:
        _configure(folder, nodes, cpus=cpus)
        _start_munge(folder)
        subprocess.run(["slurmctld"], env=slurm.env, check=True, timeout=30)
        for node in nodes.nodes:
            slurm.start_node(node)
        idle = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
        wait_until(
            lambda: len(slurm.run(*idle).split()) == len(nodes.nodes),
            "all nodes are idle",
            seconds=60,
            state=slurm.log,
        )
        yield slurm
    finally:
        if (folder / "slurmctld.pid").exists():
            subprocess.run(["scancel", "--user=root"], env=slurm.env, check=False, timeout=30)
        for file in (folder / "slurmctld.pid", folder / "munge" / "pid"):
            _end(file)
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path, nodes: VirtualNodes, *, cpus: int) -> None:
    folder.chmod(0o755)
    for name in ("munge", "state", *(f"spool-{node.name}" for node in nodes.nodes)):
        (folder / name).mkdir(mode=0o755)
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    lines = [
        _CONFIG.format(
            host=socket.gethostname().split(".")[0],
            gateway=nodes.gateway,
            port=port,
            folder=folder,
        )
    ]
    for node in nodes.nodes:
        lines.append(
            f"NodeName={node.name} NodeHostname={node.name} NodeAddr={node.address} CPUs={cpus} "
            "RealMemory=4000 State=UNKNOWN"
        )
    names = ",".join(node.name for node in nodes.nodes)
    lines.append(f"PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP")
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")


def _start_munge(folder: Path) -> None:
    munge = folder / "munge"
    key = munge / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    options = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log"}
    options["seed-file"] = "seed"
    command = ["munged", "--force", *(f"--{name}={munge / file}" for name, file in options.items())]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def _end(pid_file: Path) -> None:
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of {pid_file.stem}", seconds=30)
