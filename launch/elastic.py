"""A range of workers: as many as the cluster holds, fewer after a loss, more when they fit again.

`launch.num_workers: [fewest, most]` goes on with fewer after a node is lost, and takes new ones in:
the run is asked to save and stop at a step's end, and starts again with more.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.configuration import LaunchConfig
from launch.ray_cluster import count_answering_places, count_places_of_cluster, is_place_free

log = logging.getLogger(__name__)
LOOK_SECONDS = 10.0


def await_workers(
    launch: LaunchConfig, *, use_gpu: bool, say: Callable[[str], None], seconds: float = 5.0
) -> int:
    """How many to start: as many as the cluster holds, once it holds the fewest."""
    if not launch.is_elastic:
        return launch.most_workers  # Ray waits for them
    told = False
    while (places := count_answering_places(launch, use_gpu=use_gpu)) < launch.fewest_workers:
        if not told:
            say(
                f"the cluster holds {places} worker(s); waiting until it holds "
                f"{launch.fewest_workers}, the fewest of launch.num_workers"
            )
            told = True
        time.sleep(seconds)
    return min(places, launch.most_workers)


@contextmanager
def ask_when_more_fit(
    launch: LaunchConfig,
    workers: int,
    request: Path,
    *,
    use_gpu: bool,
    seconds: float = LOOK_SECONDS,
) -> Iterator[None]:
    """While inside, create the file `request` as soon as the cluster has room for more workers."""
    left = threading.Event()

    def look() -> None:
        while not left.wait(seconds):
            try:
                places = count_places_of_cluster(launch, use_gpu=use_gpu)
                is_room = places > workers and is_place_free(launch, use_gpu=use_gpu)
            except Exception as error:  # the cluster is about to end, or did not answer
                log.warning("the cluster's free places are not known: %s", error)
                continue
            if is_room:
                request.touch()
                return

    if workers >= launch.most_workers:
        yield
        return
    thread = threading.Thread(target=look, name="room-for-workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
