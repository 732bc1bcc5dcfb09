"""The README's map names every module, and only modules that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_map_is_complete() -> None:
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^\| `((?:distributed|sparsity|bert|launch)/\S+\.py)`", readme, re.M))
    folders = ("distributed", "sparsity", "bert", "launch")
    there = {
        str(file.relative_to(ROOT))
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        if file.name != "__init__.py"
    }
    assert named == there


def test_the_make_targets_that_it_names_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)`", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.M), target
