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

from distributed.errors import BadInput
from launch.cluster.nodes import count_free_places, describe_workers
from training.config import LaunchConfig

log = logging.getLogger(__name__)
LOOK_SECONDS = 10.0
_SETTLED_COUNTS = 3


def await_workers(
    launch: LaunchConfig,
    *,
    use_gpu: bool,
    say: Callable[[str], None],
    give_up: Callable[[], bool],
    seconds: float = 1.0,
) -> int:
    """How many to start: as many as fit beside what others run, once that is the fewest.

    A group that has ended gives its places back one after the other: they are counted until the
    count stays. Fewer than the fewest only if `give_up` says so. Without a range it is what was
    asked for, at once: Ray waits for it.
    """
    if not launch.is_elastic:
        return launch.most_workers
    before, same, told = -1, 0, False
    while not give_up():
        places = count_free_places(launch, use_gpu=use_gpu)
        same = same + 1 if places == before else 1
        is_settled = places >= launch.most_workers or same >= _SETTLED_COUNTS
        if is_settled and places >= launch.fewest_workers:
            return min(places, launch.most_workers)
        if is_settled and not told:
            say(
                f"there is room for {places} worker(s) now; waiting for more, because "
                f"launch.num_workers is {describe_workers(launch)}"
            )
            told = True
        before = places
        time.sleep(seconds)
    return 0


@contextmanager
def ask_when_more_fit(
    launch: LaunchConfig,
    request: Path,
    *,
    use_gpu: bool,
    is_full: bool,
    check: Callable[[], None],
    say: Callable[[str], None],
    seconds: float = LOOK_SECONDS,
) -> Iterator[None]:
    """While inside, create the file `request` as soon as the cluster has room for more workers.

    Args:
        launch: the range, and what a worker needs.
        request: its presence asks the group to save and stop.
        use_gpu: whether workers have a GPU each.
        is_full: the group has the most workers already.
        check: raises BadInput if a node cannot be used.
        say: tells the user, once, that it cannot.
        seconds: between two looks; it takes two to be sure, because a group that starts now has
            not taken its places yet.
    """
    if is_full:
        yield
        return
    left = threading.Event()

    def look() -> None:
        looks, told = 0, set[str]()
        while not left.wait(seconds):
            try:
                looks = looks + 1 if count_free_places(launch, use_gpu=use_gpu) else 0
                if looks < 2:
                    continue
                check()
            except BadInput as error:
                if str(error) not in told:
                    say(f"there is room for more workers, and it is not used: {error}")
                told.add(str(error))
                looks = 0  # a node lost in the middle of a check must not block growth for good
                continue
            except Exception as error:  # the cluster is about to end, or did not answer
                log.warning("the cluster's free places are not known: %s", error)
                continue
            request.touch()
            return

    thread = threading.Thread(target=look, name="room-for-workers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
