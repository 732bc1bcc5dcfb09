"""The packages that Python imports are ours: `distributed` is also the name of Dask's."""

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from launch.packages import find_foreign_package

ROOT = Path(__file__).parents[2]
PACKAGES = ("distributed", "sparsity", "training", "bert", "launch", "sparsebert")


@pytest.mark.parametrize("name", PACKAGES)
def test_the_imported_package_is_ours(name: str) -> None:
    file = import_module(name).__file__
    assert file is not None
    assert Path(file).resolve() == ROOT / name / "__init__.py"


def test_nothing_is_reported_here() -> None:
    assert find_foreign_package() is None


def test_the_project_says_what_it_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"sparsebert": "launch.__main__:main"}
    included = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert set(included) == {f"{name}*" for name in PACKAGES}
    required = " ".join(project["project"]["dependencies"]).lower()
    assert "dask" not in required


def run_with_path(*folders: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # As the console script does, which does not put the current folder first.
    script = (
        "import sys; sys.argv = ['sparsebert', '--help']; from launch.__main__ import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", ["distributed", "bert"])
def test_a_package_that_shadows_ours_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    foreign = tmp_path / name / "__init__.py"
    foreign.write_text("raise ImportError('this is not sparsebert')\n")
    done = run_with_path(tmp_path, ROOT, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: the package `{name}` would be imported from {foreign}")
    assert str(ROOT / name) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_module_that_shadows_a_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "sparsity.py").touch()
    done = run_with_path(tmp_path, ROOT, cwd=tmp_path)
    assert done.returncode == 2
    assert str(tmp_path / "sparsity.py") in done.stderr


def test_behind_ours_a_foreign_package_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed" / "__init__.py").touch()
    assert run_with_path(ROOT, tmp_path, cwd=tmp_path).returncode == 0
