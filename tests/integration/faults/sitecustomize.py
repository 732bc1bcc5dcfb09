"""Kills this process at named points of the program; for tests, through the environment alone.

Python imports this file at its start where its folder is in PYTHONPATH, in every process of a run.
`SPARSEBERT_TEST_KILLS=POINT:COUNT:RANK:MARKER;...` ends the process of that rank with SIGKILL when
it comes to POINT for the COUNT-th time since it started, and makes the file MARKER: one after
another, each once, in the order given.
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
    "all-reduce": ("distributed.world", "all_reduce_sum", "before"),
    "threshold": ("sparsity.pruning", "update_masks", "before"),
    "mid-write": ("distributed.checkpoint.writing", "write_all", "halfway"),
    "before-manifest": ("distributed.checkpoint.manifest", "write_manifest", "before"),
    "before-rename": ("distributed.checkpoint.fencing", "commit", "before"),
    "after-rename": ("distributed.checkpoint.fencing", "commit", "after"),
    "removing-old": ("distributed.files", "remove_folder", "before"),
    "reporting": ("launch.cluster.worker", "_numbers", "before"),
    # Raises instead, as a connection does that cannot be made.
    "group-start": ("distributed.world", "ensure_process_group", "raise"),
}


class Kill:
    """One moment at which this process ends."""

    def __init__(self, setting: str, before: list["Kill"]) -> None:
        """Of the setting above; waits until all of `before` have happened."""
        point, count, self.rank, marker = setting.split(":", 3)
        self.module, self.function, self.when = POINTS[point]
        self.marker, self.left, self.before = Path(marker), int(count), before

    def is_now(self) -> bool:
        if os.environ.get("RANK", "0") != self.rank or self.marker.exists():
            return False
        self.left -= 1
        return self.left <= 0 and all(kill.marker.exists() for kill in self.before)

    def die(self) -> None:
        self.marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    def patch(self, module: object) -> None:
        owner: object = module
        *outer, name = self.function.split(".")
        for part in outer:
            owner = getattr(owner, part)
        original = getattr(owner, name)

        def patched(*args: object, **kwargs: object) -> object:
            now = self.is_now()
            if now and self.when == "halfway":
                descriptor, data = args
                os.write(descriptor, data[: len(data) // 2])  # type: ignore[arg-type, index]
            if now and self.when == "raise":
                self.marker.touch()
                raise RuntimeError("connectFullMesh failed")
            if now and self.when != "after":
                self.die()
            result = original(*args, **kwargs)
            if now:
                self.die()
            return result

        setattr(owner, name, patched)


class Finder(importlib.abc.MetaPathFinder):
    """Patches the modules of `kills` once they have run."""

    def __init__(self, kills: list[Kill]) -> None:
        self.kills = kills

    def find_spec(self, name, path, target=None):  # type: ignore[no-untyped-def]
        kills = [kill for kill in self.kills if kill.module == name]
        if not kills:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module: object) -> None:
            run(module)
            for kill in kills:
                kill.patch(module)

        spec.loader.exec_module = exec_module
        return spec


if "SPARSEBERT_TEST_KILLS" in os.environ:
    _kills: list[Kill] = []
    for _setting in os.environ["SPARSEBERT_TEST_KILLS"].split(";"):
        _kills.append(Kill(_setting, list(_kills)))
    sys.meta_path.insert(0, Finder(_kills))
