"""Engines take turns in rounds; a round during which the machine did something else is left out."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from sparsebert.inference.peers import Array, Engine

MOST_OTHER_LOAD = 0.15  # cores
_LEAST_SECONDS = 0.1  # an engine runs for that long in a round: /proc counts in hundredths
_PAUSE_SECONDS = 0.06  # an engine's own threads may spin for a while after its call


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: on the clock, and of processors."""

    wall: float
    processor: float


def measure(
    engines: dict[str, Engine], inputs: tuple[Array, Array], rounds: int, limit_seconds: float
) -> tuple[dict[str, list[Timing]], list[float], int]:
    """Times of a call by engine and kept round, the load of those rounds, rounds left out.

    On a machine that never gets quiet the least disturbed rounds are kept, and their load tells.
    """
    calls = {}
    for name, run in engines.items():
        run(*inputs)
        start = time.perf_counter()
        run(*inputs)
        calls[name] = max(1, round(_LEAST_SECONDS / (time.perf_counter() - start)))
    found: list[tuple[float, dict[str, Timing]]] = []
    end = time.monotonic() + limit_seconds
    while sum(load <= MOST_OTHER_LOAD for load, _ in found) < rounds and time.monotonic() < end:
        busy, own, start_of_round = _busy_seconds(), _own_seconds(), time.perf_counter()
        times = {}
        for name, run in engines.items():
            time.sleep(_PAUSE_SECONDS)
            run(*inputs)
            start, start_processor = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                run(*inputs)
            spent, spent_processor = (
                time.perf_counter() - start,
                time.process_time() - start_processor,
            )
            times[name] = Timing(spent / calls[name], spent_processor / calls[name])
        wall = time.perf_counter() - start_of_round
        others = (_busy_seconds() - busy) - (_own_seconds() - own)
        found.append((max(0.0, others / wall), times))
    quiet = [pair for pair in found if pair[0] <= MOST_OTHER_LOAD]
    if len(quiet) < 3:
        quiet = sorted(found, key=lambda pair: pair[0])[: max(3, len(found) // 4)]
    kept = {name: [times[name] for _, times in quiet] for name in engines}
    return kept, [load for load, _ in quiet], len(found) - len(quiet)


def _busy_seconds() -> float:
    """Of all cores since the start, by all processes; 0 where it cannot be known."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, first.split()[1:])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system
