"""Real processes hold leases, are killed, and are found to be gone or alive."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from distributed.errors import BadInput
from training import lease
from training.lease import FILE_NAME, hold, refuse_if_held

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from pathlib import Path
from training import lease
lease.BEAT_SECONDS = 0.1
with lease.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait(10)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LAPSE_SECONDS", 2.0)


def from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another machine sees the same file: process numbers mean nothing."""
    monkeypatch.setattr(lease, "_machine", lambda: "another machine")


def test_it_is_held_and_given_back(tmp_path: Path) -> None:
    with hold(tmp_path):
        content = json.loads((tmp_path / FILE_NAME).read_text())
        assert content["process"] == os.getpid() and content["host"] and content["since"]
    assert not (tmp_path / FILE_NAME).exists()
    with hold(tmp_path):
        pass


def test_a_second_is_refused_with_the_holders_data(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    content = json.loads((tmp_path / FILE_NAME).read_text())
    want = f"trained by process {holder.pid} on {content['host']}, which started at 20"
    for attempt in (lambda: hold(tmp_path).__enter__(), lambda: refuse_if_held(tmp_path)):
        with pytest.raises(BadInput, match=want):
            attempt()


def test_a_killed_holder_is_succeeded_at_once(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait(10)
    assert (tmp_path / FILE_NAME).exists()
    refuse_if_held(tmp_path)
    with hold(tmp_path):
        assert json.loads((tmp_path / FILE_NAME).read_text())["process"] == os.getpid()


def test_a_stopped_holder_of_this_machine_keeps_it(
    tmp_path: Path, holder: subprocess.Popen[str], quick: None
) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    time.sleep(0.3)
    with pytest.raises(BadInput, match=str(holder.pid)):
        hold(tmp_path).__enter__()


def test_from_another_machine_a_beat_is_life(
    tmp_path: Path, holder: subprocess.Popen[str], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_elsewhere(monkeypatch)
    refuse_if_held(tmp_path)  # cannot know yet
    with pytest.raises(BadInput, match=f"process {holder.pid}"):
        hold(tmp_path).__enter__()


def test_from_another_machine_a_lease_lapses(
    tmp_path: Path,
    holder: subprocess.Popen[str],
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    holder.kill()
    holder.wait(10)
    # A clock that was set back makes the file look as if it came from the future.
    os.utime(tmp_path / FILE_NAME, (time.time() + 1e6, time.time() + 1e6))
    from_elsewhere(monkeypatch)
    with hold(tmp_path):
        pass
    assert f"was held by process {holder.pid}" in capsys.readouterr().out


def test_a_job_that_is_started_again_waits_for_its_earlier_start(
    tmp_path: Path,
    holder: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """SLURM may start a job anew while what it started before still ends."""
    file = tmp_path / FILE_NAME
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    holder.send_signal(signal.SIGSTOP)  # it writes no beat any more, and lives
    file.write_text(json.dumps(json.loads(file.read_text()) | {"slurm_job": "7"}))
    refuse_if_held(tmp_path)
    threading.Timer(1.0, holder.kill).start()
    with hold(tmp_path):
        assert holder.wait(10) == -signal.SIGKILL
        assert (content := json.loads(file.read_text()))["process"] == os.getpid()
        assert (content["slurm_job"], content["slurm_start"]) == ("7", 1)
    assert f"earlier start to end: process {holder.pid}" in capsys.readouterr().out


@pytest.mark.parametrize(("job", "start"), [("7", 1), ("8", 0), ("", 0)])
def test_no_other_is_waited_for(
    tmp_path: Path,
    holder: subprocess.Popen[str],
    monkeypatch: pytest.MonkeyPatch,
    job: str,
    start: int,
) -> None:
    file = tmp_path / FILE_NAME
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    holder.send_signal(signal.SIGSTOP)
    content = json.loads(file.read_text()) | {"slurm_job": job, "slurm_start": start}
    file.write_text(json.dumps(content))
    for attempt in (lambda: hold(tmp_path).__enter__(), lambda: refuse_if_held(tmp_path)):
        with pytest.raises(BadInput, match=str(holder.pid)):
            attempt()


def test_an_earlier_start_that_does_not_end_is_a_refusal(
    tmp_path: Path, holder: subprocess.Popen[str], quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / FILE_NAME
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(lease, "EARLIER_START_SECONDS", 1.0)
    holder.send_signal(signal.SIGSTOP)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"slurm_job": "7"}))
    with pytest.raises(BadInput, match=str(holder.pid)):
        hold(tmp_path).__enter__()


def test_of_several_that_come_at_once_one_gets_it(tmp_path: Path) -> None:
    """The holder before them is dead, so that all of them may take over."""
    dead = {"token": "x", "host": "h", "machine": lease._machine(), "process": 2**22 + 1}
    dead |= {"process_started": "1", "since": "", "beat": 0}
    (tmp_path / FILE_NAME).write_text(json.dumps(dead))
    got, refused = [], []
    ready, done = threading.Barrier(8), threading.Barrier(8)

    def come() -> None:
        ready.wait(30)
        try:
            with hold(tmp_path):
                got.append(1)
                done.wait(30)
        except BadInput:
            refused.append(1)
            done.wait(30)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (len(got), len(refused)) == (1, 7)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"token": 1}'])
def test_a_file_that_names_nobody_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE_NAME).write_text(content)
    refuse_if_held(tmp_path)
    with hold(tmp_path):
        pass


def test_storage_that_stands_still_does_not_give_a_lease_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it does, the holder on another machine cannot beat either."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "LAPSE_SECONDS", 0.6)
    holder = replace(lease._myself(), machine="elsewhere", token="another")
    reads = 0

    def read(_: Path) -> lease.Holder:
        nonlocal reads
        reads += 1
        if reads == 3:
            time.sleep(1.0)
        return replace(holder, beat=int(reads > 3))

    monkeypatch.setattr(lease, "_read", read)
    with pytest.raises(BadInput, match="is being trained by"), hold(tmp_path, say=False):
        pass


def test_a_lost_lease_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    file = tmp_path / FILE_NAME
    with hold(tmp_path) as lost:
        assert not lost.wait(0.3)
        successor = json.dumps({**json.loads(file.read_text()), "token": "another"})

        def is_told() -> bool:
            file.write_text(successor)  # without the lock, so a beat may write over it
            return lost.wait(0.2)

        assert any(is_told() for _ in range(100))
    assert json.loads(file.read_text())["token"] == "another", "it is the successor's"
