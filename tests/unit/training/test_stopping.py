import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.progress import report_end
from training.folder import RunFolder
from training.stopping import STOPPED_EXIT_CODE, StopRequest, forget_signal, signals_request_stop

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_raises_the_request(
    tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    stop_file = tmp_path / "stop"
    with signals_request_stop(stop_file) as requested:
        assert not stop_file.exists() and not requested()
        os.kill(os.getpid(), number)
        assert stop_file.exists() and requested()
        os.kill(os.getpid(), number)  # at once: the same request
    assert not stop_file.exists(), "the next start trains"
    assert signal.getsignal(number) == before
    assert capfd.readouterr().out == (
        f"{number.name}: stopping at the next step's end, again to leave at once\n"
    )


def test_only_one_of_several_processes_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with signals_request_stop(tmp_path / "stop", say=False):
        os.kill(os.getpid(), signal.SIGTERM)
        assert (tmp_path / "stop").exists()
    assert capfd.readouterr().out == ""


def test_a_person_asks_by_the_file(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    file.touch()
    forget_signal(file)
    with signals_request_stop(file) as requested:
        assert requested(), "asked before the run began"
    assert not file.exists()


def test_what_a_killed_start_was_asked_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    StopRequest(file).write()
    assert file.exists()
    forget_signal(file)
    assert not file.exists()
    forget_signal(file)


def test_a_request_that_cannot_be_written_counts_and_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "not there" / "stop"
    with signals_request_stop(file, say=False) as requested:
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested() and not file.exists()
        file.parent.mkdir()
        assert requested() and file.exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_nobody_reads_any_more(tmp_path: Path, terminal: bool) -> None:
    """As after Ctrl-C with `| tee`, which takes the reader too."""
    script = (
        "import os, signal, sys; from pathlib import Path; from rich.console import Console\n"
        "from launch.progress import ProgressDisplay, report_end\n"
        "from training.folder import RunFolder; import training.stopping as s\n"
        f"console = Console(force_terminal={terminal})\n"
        "with s.signals_request_stop(Path(sys.argv[1])) as asked, \\\n"
        "     ProgressDisplay(9, start_step=0, label='x', console=console) as display:\n"
        "    sys.stdin.read()\n"  # the reader is gone
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    display.update({'step': 1, 'train/mlm_loss': 1.0})\n"
        "    display.note('saved')\n"
        "    assert asked()\n"
        "sys.exit(report_end(RunFolder(Path('r')), 3, 5))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "stop")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=60)
    assert process.returncode == STOPPED_EXIT_CODE, errors.decode()


def test_a_later_signal_leaves_at_once(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; import training.stopping as s\n"
        "s._SAME_REQUEST_SECONDS = 0.0\n"
        "with s.signals_request_stop(Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('still here')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "stop")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert "still here" not in done.stdout


def test_the_end_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder(tmp_path / "demo")
    assert report_end(folder, 5, 5) == 0
    assert "is complete: 5 steps" in capsys.readouterr().out
    assert report_end(folder, 3, 5) == STOPPED_EXIT_CODE == 75
    out = capsys.readouterr().out
    assert "step 3 of 5" in out and "the same command continues it" in out
