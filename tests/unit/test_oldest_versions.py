"""constraints-oldest.txt, which `make test-oldest` tests with, follows pyproject.toml."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def read_ranges() -> dict[str, Requirement]:
    """Every requirement of the project and its extras that names a version, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    del extras["bench"]  # other engines, which no test uses
    lines = [*project["dependencies"], *sum(extras.values(), [])]
    ranges = {requirement.name: requirement for requirement in map(Requirement, lines)}
    assert len(ranges) == len(lines), "a package is named twice"
    return {name: found for name, found in ranges.items() if found.specifier}


def read_constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {name: Version(version) for name, version in pairs}


def test_the_oldest_of_every_range_is_tested() -> None:
    ranges, constraints = read_ranges(), read_constraints()
    assert set(constraints) == set(ranges)
    for name, requirement in ranges.items():
        (oldest,) = (s.version for s in requirement.specifier if s.operator in (">=", "=="))
        assert constraints[name] == Version(oldest), name


def test_lists_are_sorted() -> None:
    names = list(read_constraints())
    assert names == sorted(names)
