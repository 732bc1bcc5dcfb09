"""The README's map names every folder, and only folders and make targets that are there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_map_is_complete() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*/*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: what lies here may not belong to the project")
    there = {line.split("/")[0] for line in listed.stdout.splitlines()} - {".ci"}
    named = set(re.findall(r"^\| `([a-z]+)/` \|", (ROOT / "README.md").read_text(), re.M))
    assert named == there


def test_the_make_targets_that_it_names_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)`", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.M), target
