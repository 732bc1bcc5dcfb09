"""One launcher to a run folder: a lease, renewed by a heartbeat, that a dead holder loses.

    lease.json   who holds it: host, process, when it began, and a beat that grows every few seconds

A second launcher is refused with the holder's data. On the holder's own machine its process is
looked up, so a killed one is succeeded at once. From another machine the beat is watched: one that
does not grow for `LAPSE_SECONDS`, by the watcher's own steady clock, has no holder any more. No
clocks are compared, and a lost node or a `kill -9` blocks nothing for longer. A SLURM job that was
started again waits for its own earlier start, which SLURM may not have ended yet.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from distributed.errors import BadInput
from distributed.files import write_json
from distributed.launcher import read_restart_count

log = logging.getLogger(__name__)

FILE_NAME = "lease.json"
BEAT_SECONDS = 3.0
LAPSE_SECONDS = 20.0  # several beats: a busy file system delays one
EARLIER_START_SECONDS = 300.0  # to save a large model and end


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    token: str
    host: str
    machine: str  # one boot of one kernel and one PID namespace: where `process` means something
    process: int
    process_started: str  # in clock ticks since the boot: a later process of that number differs
    since: str  # for people
    beat: int = 0
    slurm_job: str = ""
    slurm_start: int = 0  # how often the job was started before

    def is_earlier_start_of(self, other: "Holder") -> bool:
        """Whether both belong to one SLURM job, which was queued again in between."""
        is_same = bool(self.slurm_job) and self.slurm_job == other.slurm_job
        return is_same and self.slurm_start < other.slurm_start

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, which started at {self.since}"


@contextlib.contextmanager
def hold(folder: Path, *, say: bool = True) -> Iterator[threading.Event]:
    """Hold the lease of a run folder, which exists, while inside; an event that it was lost.

    Args:
        folder: the run's.
        say: print what is waited for.

    Raises:
        BadInput: somebody else holds it.
    """
    file = folder / FILE_NAME
    me = _myself()
    _acquire(file, me, say=say)
    stop, lost = threading.Event(), threading.Event()
    beating = threading.Thread(target=_beat, args=(file, me, stop, lost), name="lease", daemon=True)
    beating.start()
    try:
        yield lost
    finally:
        stop.set()
        beating.join()
        with contextlib.suppress(OSError), _locked(file):
            if (holder := _read(file)) is not None and holder.token == me.token:
                file.unlink()


def refuse_if_held(folder: Path) -> None:
    """Refuse at once where it is plain already: a process of this machine trains the run.

    Raises:
        BadInput: it does.
    """
    holder, me = _read(folder / FILE_NAME), _myself()
    if holder is None or holder.is_earlier_start_of(me):
        return  # `hold` waits for it
    if holder.machine == me.machine and _is_alive(holder):
        raise _refusal(folder, holder)


def _acquire(file: Path, me: Holder, *, say: bool) -> None:
    watched: Holder | None = None
    lapses = 0.0
    looked = time.monotonic()
    deadline = looked + EARLIER_START_SECONDS
    awaited = False
    while True:
        with _locked(file):
            holder = _read(file)
            if time.monotonic() - looked > BEAT_SECONDS:
                lapses = time.monotonic() + LAPSE_SECONDS  # storage stood still, for the holder too
            looked = time.monotonic()
            is_free = holder is None or (
                not _is_alive(holder)
                if holder.machine == me.machine
                else holder == watched and time.monotonic() > lapses
            )
            if is_free:
                write_json(file, asdict(me))
                return
        assert holder is not None
        if holder.machine == me.machine or (
            watched is not None and holder.token == watched.token and holder.beat != watched.beat
        ):
            if not holder.is_earlier_start_of(me) or time.monotonic() > deadline:
                raise _refusal(file.parent, holder)
            if say and not awaited:
                print(f"waiting for this job's earlier start to end: {holder}", flush=True)
            awaited = True
        if holder != watched:
            watched, lapses = holder, time.monotonic() + LAPSE_SECONDS
            if say and not awaited:
                print(f"{file.parent} was held by {holder}: seeing if it still is", flush=True)
        time.sleep(BEAT_SECONDS / 4)


def _refusal(folder: Path, holder: Holder) -> BadInput:
    return BadInput(
        f"{folder} is being trained by {holder}: stop that, or give this run another name"
    )


def _beat(file: Path, me: Holder, stop: threading.Event, lost: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        me = replace(me, beat=me.beat + 1)
        try:
            with _locked(file):
                holder = _read(file)
                if holder is not None and holder.token != me.token:
                    # It was away for longer than the lapse. Its workers are fenced out already.
                    log.error("%s is now held by %s", file.parent, holder)
                    lost.set()
                    return
                write_json(file, asdict(me))
        except OSError as error:  # a full disk must not end a run
            log.warning("the lease %s is not renewed: %s", file, error)


def _read(file: Path) -> Holder | None:
    """The holder; None if there is none, or nobody that can be made out."""
    try:
        return Holder(**json.loads(file.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock across read-modify-write."""
    descriptor = os.open(file.with_name(f".{file.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: a race of microseconds
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _myself() -> Holder:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=_machine(),
        process=os.getpid(),
        process_started=_start_of(os.getpid()) or "",
        since=now,
        slurm_job=os.environ.get("SLURM_JOB_ID", ""),
        slurm_start=read_restart_count(),
    )


def _machine() -> str:
    """The same for processes that see each other's numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: watch the beat
        return uuid.uuid4().hex


def _is_alive(holder: Holder) -> bool:
    return _start_of(holder.process) == holder.process_started


def _start_of(process: int) -> str | None:
    """When a process of this machine started, in ticks; None if there is no such process."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else fields[19]
