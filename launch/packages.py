"""Whether the packages that Python finds are ours: the name `distributed` is also Dask's.

Imports nothing of this project, because it must work when that would fail.
"""

from importlib.util import find_spec
from pathlib import Path

# A module that only ours has, to tell a package from one that was installed over it.
_PACKAGES = {
    "distributed": "partition",
    "sparsity": "selection/threshold",
    "training": "recipe",
    "bert": "pretrain",
    "sparsebert": "inference/convert",
}


def find_foreign_package() -> str | None:
    """What to tell the user if a package of another project would be imported instead of ours."""
    ours = Path(__file__).resolve().parent.parent
    for name, module in _PACKAGES.items():
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            return (
                f"the package `{name}` of sparsebert in {ours} is not found: install the project "
                "again, with `pip install -e .` in its folder"
            )
        origin = Path(spec.origin).resolve()
        if origin.parent != ours / name or not (origin.parent / f"{module}.py").is_file():
            return (
                f"the package `{name}` would be imported from {origin} instead of {ours / name}: "
                "run sparsebert from its own folder or virtual environment, or take the other "
                f"`{name}` (Dask installs one named `distributed`) off PYTHONPATH"
            )
    return None
