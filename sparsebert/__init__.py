"""What users call, imported when it is first used.

`to_sparse`, `save_sparse` and `load_sparse` serve a sparse BERT on CPUs and need torch and
transformers alone; `attach`, `SparsityConfig` and `prune_folder` make one, and are part of the
whole project.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert.folders.prune import prune_folder
    from sparsebert.inference.convert import to_sparse
    from sparsebert.inference.sparse_folder import load_sparse, save_sparse
    from sparsity.attach import attach
    from sparsity.schedule import SparsityConfig

__version__ = "0.1.0"
__all__ = [
    "SparsityConfig",
    "__version__",
    "attach",
    "load_sparse",
    "prune_folder",
    "save_sparse",
    "to_sparse",
]

_MODULES = {
    "attach": "sparsity.attach",
    "SparsityConfig": "sparsity.schedule",
    "prune_folder": "bert.folders.prune",
    "to_sparse": "sparsebert.inference.convert",
    "save_sparse": "sparsebert.inference.sparse_folder",
    "load_sparse": "sparsebert.inference.sparse_folder",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES[name]
    try:
        found = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("sparsity", "bert"):
            raise
        raise ImportError(
            f"sparsebert.{name} trains and prunes, and this is the light distribution, which only "
            "serves: install the whole project, `sparsebert`, from its source folder"
        ) from None
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
