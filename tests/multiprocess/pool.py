"""Runs any module-level function on N processes that share one gloo group, without ports.

The processes of a world size start once and serve all tests: importing torch and DeepSpeed costs
more than most tests. A failure or a timeout ends the pool; the next test starts a new one.
"""

import multiprocessing as mp
import os
import queue
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 300.0
# "fork" is for a process that has imported torch and DeepSpeed and has started no thread.
START_METHOD = "SPARSEBERT_TEST_POOL"


def _serve(rank: int, world_size: int, store: str, tasks: Any, results: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    # Tests that compare bits must not depend on how many cores the machine has.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist
    import transformers.models.bert.modeling_bert  # noqa: F401 (tests find it imported)

    from distributed.imports import freeze_imports
    from distributed.zero import import_deepspeed

    import_deepspeed("cpu")
    freeze_imports()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    while True:
        task = tasks.get()
        if task is None:
            break
        function, args = task
        try:
            results.put((rank, function(*args), None))
        except BaseException:
            results.put((rank, None, traceback.format_exc()))
    dist.destroy_process_group()


class Pool:
    """`world_size` processes in one group."""

    def __init__(self, world_size: int) -> None:
        context = mp.get_context(os.environ.get(START_METHOD, "spawn"))
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._results = context.Queue()
        self._tasks = [context.Queue() for _ in range(world_size)]
        self._processes = [
            context.Process(
                target=_serve,
                args=(rank, world_size, store, self._tasks[rank], self._results),
                daemon=True,
            )
            for rank in range(world_size)
        ]
        for process in self._processes:
            process.start()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(*args)` on every rank; what each returned, by rank."""
        for tasks in self._tasks:
            tasks.put((function, args))
        answers: dict[int, Any] = {}
        while len(answers) < len(self._processes):
            try:
                rank, value, error = self._results.get(timeout=TIMEOUT_SECONDS)
            except queue.Empty:
                self.stop()
                raise TimeoutError(f"ranks {sorted(answers)} answered, the others hang") from None
            if error is not None:
                self.stop()
                raise AssertionError(f"rank {rank} failed:\n{error}")
            answers[rank] = value
        return [answers[rank] for rank in sorted(answers)]

    @property
    def is_alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


_pools: dict[int, Pool] = {}


def run(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run on the pool of that size, started when first needed."""
    pool = _pools.get(world_size)
    if pool is None or not pool.is_alive:
        pool = _pools[world_size] = Pool(world_size)
    return pool.run(function, *args)


def stop_all() -> None:
    for pool in _pools.values():
        pool.stop()
    _pools.clear()
