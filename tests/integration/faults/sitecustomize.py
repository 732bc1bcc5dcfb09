"""Kills this process at a named point of the program; for tests, through the environment alone.

Python imports this file at its start where its folder is in PYTHONPATH, in every process of a run.
`SPARSEBERT_TEST_KILL=POINT:COUNT:RANK:MARKER` then ends the process of that rank with SIGKILL when
it comes to POINT for the COUNT-th time, once: the file MARKER says that it has happened.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
from pathlib import Path

# point: module, function, when
POINTS = {
    "forward": ("distributed.zero", "Engine.forward", "before"),
    "step": ("distributed.zero", "Engine.step", "before"),
    "all-reduce": ("distributed.collectives", "all_reduce_sum", "before"),
    "threshold": ("sparsity.pruning", "update_masks", "before"),
    "mid-write": ("distributed.checkpoint_writer", "write_all", "halfway"),
    "before-manifest": ("distributed.checkpoint_manifest", "write_manifest", "before"),
    "before-rename": ("distributed.fencing", "commit", "before"),
    "after-rename": ("distributed.fencing", "commit", "after"),
    "removing-old": ("distributed.files", "remove_folder", "before"),
    "reporting": ("launch.driver", "_numbers", "before"),
    # Raises instead, as a connection does that cannot be made. No rank is known yet: 0 stands.
    "group-start": ("ray.train.torch.config", "_setup_torch_process_group", "raise"),
}


def install(setting: str) -> None:
    point, count, rank, marker = setting.split(":", 3)
    module_name, function_name, when = POINTS[point]
    state = {"left": int(count)}

    def is_the_moment() -> bool:
        if os.environ.get("RANK", "0") != rank or Path(marker).exists():
            return False
        state["left"] -= 1
        return state["left"] == 0

    def die() -> None:
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def patch(module: object) -> None:
        owner: object = module
        *outer, name = function_name.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original = getattr(owner, name)

        def patched(*args: object, **kwargs: object) -> object:
            now = is_the_moment()
            if now and when == "halfway":
                descriptor, data = args
                os.write(descriptor, data[: len(data) // 2])  # type: ignore[arg-type, index]
            if now and when == "raise":
                Path(marker).touch()
                raise RuntimeError("connectFullMesh failed")
            if now and when != "after":
                die()
            result = original(*args, **kwargs)
            if now:
                die()
            return result

        setattr(owner, name, patched)

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
            if name != module_name:
                return None
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            run = spec.loader.exec_module

            def exec_module(module: object) -> None:
                run(module)
                patch(module)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder())


if "SPARSEBERT_TEST_KILL" in os.environ:
    install(os.environ["SPARSEBERT_TEST_KILL"])
