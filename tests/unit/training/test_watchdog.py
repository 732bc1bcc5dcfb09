"""In a process of its own, which the watchdog really ends."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys, time
from pathlib import Path
from training.watchdog import Watchdog

def hang_in_this_function():
    time.sleep(60)

watchdog = Watchdog(0.5, stacks=Path(sys.argv[1]), tell=lambda told: print(told, flush=True))
for _ in range(10):
    time.sleep(0.1)
    watchdog.beat()
print("ten steps", flush=True)
if sys.argv[2] == "hang":
    hang_in_this_function()
watchdog.stop()
time.sleep(0.8)
print("the end", flush=True)
"""


def run(stacks: Path, how: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(stacks), how],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=50,
        check=False,
    )


def test_a_hang_ends_the_process_and_shows_where_it_was(tmp_path: Path) -> None:
    done = run(tmp_path / "stacks", "hang")
    assert done.returncode == 1
    steps, told = done.stdout.splitlines()
    assert steps == "ten steps" and told.startswith("no step was finished for 0.5 s")
    assert "hang_in_this_function" in (tmp_path / "stacks").read_text()


def test_progress_and_a_stopped_watchdog_end_nothing(tmp_path: Path) -> None:
    done = run(tmp_path / "stacks", "go on")
    assert (done.returncode, done.stdout) == (0, "ten steps\nthe end\n")
    assert not (tmp_path / "stacks").exists()
