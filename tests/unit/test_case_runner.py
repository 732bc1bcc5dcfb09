"""What is measured stays, whatever ends the case or the program; what is there is not repeated."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.case_runner import LEFT_EXIT_CODE, Runner
from benchmarks.case_table import render
from distributed.errors import BadInput
from tests.unit.toy_cases import CASES

ROOT = Path(__file__).parents[2]
TOYS = "tests.unit.toy_cases"
WHERE = {"code": "c0de", "smoke": False, "machine": {"card": "a card", "driver": "1.2"}}
WHERE |= {"commit": "abc", "command": "python3 gpu.py"}


def build(out: Path, **where: Any) -> Runner:
    return Runner(TOYS, out, device="cpu", smoke=False, where=WHERE | where)


def run(out: Path, *only: str, budget_seconds: float = 600, **where: Any) -> int:
    return build(out, **where).run(budget_seconds=budget_seconds, only=only)


def read(out: Path) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["results"]
    return results


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_figures_are_kept_and_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "quick") == 0
    first, second = read(tmp_path)
    assert first["figures"] == {"value": 1, "device": "cpu", "smoke": False, "a list": [1, 2]}
    assert (first["case"], second["case"]) == ("quick value=1", "quick value=2")
    assert {r["status"] for r in (first, second)} == {"measured"}
    assert first.items() >= WHERE.items()
    printed = capfd.readouterr().out
    table = (tmp_path / "table.md").read_text()
    assert printed.endswith(table + "\n")
    assert "## a card, driver 1.2" in table and "python3 gpu.py" in table
    assert "| value 2; device cpu; smoke False |" in table, "a list is for results.json alone"
    # The table after the first case was printed before the second began.
    assert printed.index("| value 1;") < printed.index("== quick value=2")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "log.txt",
        "results.json",
        "table.md",
    ]


def test_what_was_measured_is_not_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "quick") == 0
    before = read(tmp_path)
    assert run(tmp_path, "quick") == 0
    assert read(tmp_path) == before
    assert "0 of 2 cases are to be measured" in capfd.readouterr().out
    assert run(tmp_path, "quick value=2", code="other") == 0
    assert run(tmp_path, "quick value=2", machine={"card": "another"}) == 0
    assert build(tmp_path).run(budget_seconds=60, only=["quick value=1"], again=True) == 0
    assert len(read(tmp_path)) == len(before) + 3
    # A record that differs only in its command and commit is good.
    assert run(tmp_path, "quick", commit="def", command="other") == 0
    assert len(read(tmp_path)) == len(before) + 3


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("failing", "ValueError: there is no such kernel"),
        ("not_a_number", "ValueError: Out of range float values are not JSON compliant"),
        ("killed", "its process ended with code -9"),
    ],
)
def test_a_failure_is_told_and_the_next_case_runs(tmp_path: Path, case: str, error: str) -> None:
    assert run(tmp_path, case, "quick value=2") == 1
    results = {record["case"]: record for record in read(tmp_path)}
    assert results[case]["status"] == "failed"
    assert results[case]["error"].startswith(error)
    assert "before" in results[case]["figures"]
    assert results["quick value=2"]["status"] == "measured"
    assert f"**failed**: {error}" in (tmp_path / "table.md").read_text()
    assert run(tmp_path, case) == 1, "it is not tried again"
    assert len(read(tmp_path)) == 2


def test_a_case_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    assert build(tmp_path).run(budget_seconds=600, only=["endless"], jobs=1) is not None
    record = read(tmp_path)[0]
    assert (record["status"], record["error"]) == ("out of time", "not done after 6 s")
    pids = record["figures"].values()
    assert len(pids) == 2 and not any(is_running(pid) for pid in pids)


def test_the_budget_decides_what_starts_and_what_is_cut_off(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of 12 s: not half of the first limit, 60, but of the second, 20."""
    assert run(tmp_path, "quick", budget_seconds=12) == LEFT_EXIT_CODE
    assert [record["case"] for record in read(tmp_path)] == ["quick value=2"]
    assert "1 cases are left" in capfd.readouterr().out
    out = tmp_path / "cut"
    assert run(out, "endless", budget_seconds=5) == LEFT_EXIT_CODE
    (record,) = read(out)
    assert (record["status"], record["error"]) == ("cut off", "the budget ended after 5 s")
    assert "pid" in record["figures"]
    assert run(out, "endless", budget_seconds=600) == 1, "it is due again, and gets its own limit"
    assert [record["status"] for record in read(out)] == ["cut off", "out of time"]


# A shell that starts the tests in the background has them ignore SIGINT.
START = f"""
import signal, sys
from pathlib import Path
from benchmarks.case_runner import Runner
signal.signal(signal.SIGINT, signal.default_int_handler)
runner = Runner({TOYS!r}, Path(sys.argv[1]), device="cpu", smoke=False, where={WHERE!r})
sys.exit(runner.run(budget_seconds=600, only=["endless long=1", "quick value=1"], jobs=2))
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_program_keeps_figures_and_leaves_no_case(
    tmp_path: Path, how: signal.Signals
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen(
        [sys.executable, "-c", START, str(tmp_path)], env=environment, stdout=subprocess.PIPE
    )
    running = tmp_path / f"running-{len(CASES) - 1}.json"
    while not (running.exists() and json.loads(running.read_text())["figures"]):
        assert program.poll() is None
        time.sleep(0.1)
    figures = json.loads(running.read_text())["figures"]
    program.send_signal(how)
    program.communicate()
    assert program.returncode == (-how if how == signal.SIGKILL else LEFT_EXIT_CODE)
    deadline = time.monotonic() + 60
    while is_running(figures["pid"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(figures["pid"])
    if how == signal.SIGKILL:  # then nobody ends what the case itself had started
        with contextlib.suppress(ProcessLookupError):
            os.kill(figures["pid of child"], signal.SIGKILL)
    runner = build(tmp_path)
    records = {record["case"]: record for record in read(tmp_path)}
    assert records["endless long=1"]["status"] == "cut off"
    assert records["endless long=1"]["figures"] == figures
    assert not list(tmp_path.glob("running-*"))
    assert runner.run(budget_seconds=600, only=["quick value=1"]) == 0
    measured = [r["case"] for r in read(tmp_path) if r["status"] == "measured"]
    # Twice where the program was killed after it wrote the result and before it removed the case.
    assert measured and set(measured) == {"quick value=1"}


def test_results_of_another_folder_are_taken_over(tmp_path: Path) -> None:
    assert run(tmp_path / "first", "quick value=1") == 0
    runner = build(tmp_path / "second")
    for _ in range(2):
        runner.add_results(tmp_path / "first/results.json")
    assert runner.run(budget_seconds=600, only=["quick"]) == 0
    names = [record["case"] for record in read(tmp_path / "second")]
    assert names == ["quick value=1", "quick value=2"]
    with pytest.raises(BadInput, match="there are no results in .*/third.json"):
        runner.add_results(tmp_path / "third.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"results": 1}', '{"results": [{"case": "a"}]}'])
def test_results_that_cannot_be_read_are_refused_and_kept(tmp_path: Path, text: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(BadInput, match=r"results\.json is not a file of results"):
        build(tmp_path)
    assert file.read_text() == text


def test_a_name_that_no_case_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no case is called quik: the cases are quick, failing"):
        run(tmp_path, "quick", "quik")


def test_each_machine_and_code_has_a_table() -> None:
    def record(case: str, card: str, value: float, **more: Any) -> dict[str, Any]:
        place = {"machine": {"card": card, "torch": "2"}, "code": "c", "commit": "d"}
        return {"case": case, "status": "measured", "figures": {"ms": value}, **place, **more}

    table = render(
        [
            record("b", "H100", 1.23456, command="one"),
            record("a", "H200", 12345.678, command="one"),
            record("a", "H100", 0.00012345, command="two"),
            record("b", "H100", 3.0, command="two"),
        ],
        order=["a", "b"],
    )
    first, second = table.split("## ")[1:]
    assert first.startswith("H100\n\ntorch 2. Commit d, code c.")
    assert "    one\n    two\n" in first and "    two" not in second
    rows = [line for line in table.splitlines() if line.startswith(("| a", "| b"))]
    assert rows == ["| a |  | ms 0.0001234 |", "| b |  | ms 3 |", "| a |  | ms 12,346 |"]
