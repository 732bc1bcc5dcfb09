"""What a start of a run goes on from: a checkpoint that all ranks agree on, and a token of its own.

1. claim       writers of earlier starts are shut out (fencing.py)
2. choose      the newest checkpoint whose every file is as written; damaged ones are told of
3. cut         damaged later checkpoints out of the way, the metrics back to the chosen step
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.checkpoint.fencing import claim
from distributed.checkpoint.manifest import BadCheckpoint
from distributed.checkpoint.reading import Checkpoint, find_newest
from distributed.checkpoint.retention import set_aside
from distributed.errors import BadInput, Unrecoverable
from distributed.files import TRANSIENT_ERRORS, write_json
from training.events import append_event
from training.folder import RunFolder, truncate_metrics

if TYPE_CHECKING:
    from distributed.world import Topology


@dataclass(frozen=True)
class Attempt:
    """One start."""

    token: str  # tells its writers from those of other starts (fencing.py)
    checkpoint: Checkpoint | None  # None: from the beginning
    batch_offset: int | None  # None: what the checkpoint says


def agree_on_attempt(
    folder: RunFolder, topology: "Topology", *, next_batch: int | None, most_returns: int
) -> Attempt:
    """Collective: rank 0 chooses and all take it.

    Args:
        folder: the run's.
        topology: of this process.
        next_batch: with it this start is a return to the last checkpoint, to go on with that batch.
        most_returns: how many of those a run may make.

    Raises:
        BadInput: on all ranks: no checkpoint is good, or nothing can be written.
        Unrecoverable: on all ranks: one return too many.
    """
    from distributed.world import broadcast_json

    choice: dict[str, Any] = {}
    if topology.is_first:
        try:
            choice = _choose(folder, next_batch, most_returns)
        # The others wait for this broadcast: they hear of the failure instead of hanging.
        except OSError as error:
            reason = f"{folder.checkpoints} cannot be used ({error}): see to its disk"
            choice = {"error" if error.errno in TRANSIENT_ERRORS else "bad_input": reason}
        except BadInput as error:
            choice = {"bad_input": str(error)}
        except Unrecoverable as error:
            choice = {"unrecoverable": str(error)}
        except Exception as error:
            choice = {"error": repr(error)}
    choice = broadcast_json(choice)
    if "bad_input" in choice:
        raise BadInput(choice["bad_input"])
    if "unrecoverable" in choice:
        raise Unrecoverable(choice["unrecoverable"])
    if "error" in choice:
        raise RuntimeError(f"rank 0 could not choose a checkpoint: {choice['error']}")
    # Rank 0 has compared the checksums; once is enough.
    path = choice["path"]
    try:
        checkpoint = Checkpoint(Path(path), verify=False) if path is not None else None
    except BadCheckpoint as error:  # rank 0 has read it: what is wrong is here, and may pass
        raise RuntimeError(f"rank {topology.rank} cannot read what rank 0 has: {error}") from error
    return Attempt(choice["token"], checkpoint, choice["batch_offset"])


def find_start(folder: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """The newest good checkpoint, None for a new run, and why later ones are not.

    Raises:
        BadInput: there are checkpoints and none is good: a run does not silently begin anew.
    """
    newest, refused = find_newest(folder.checkpoints)
    if refused and newest is None:
        raise BadInput(
            f"{folder.checkpoints} has checkpoints and none can be used ({refused[0]}): see to "
            "its disk or put a good one back; without any, the run starts anew"
        )
    return newest, refused


def _choose(folder: RunFolder, next_batch: int | None, most_returns: int) -> dict[str, Any]:
    token = claim(folder.checkpoints)
    newest, refused = find_start(folder)
    for reason in refused:
        append_event(folder.events_file, "damage", f"passed over a damaged checkpoint: {reason}")
    step = newest.step if newest is not None else 0
    returns = _read_returns(folder.passed_over_file)
    if next_batch is not None:
        returns.append({"step": step, "next_batch": next_batch})
        if len(returns) > most_returns:
            raise Unrecoverable(
                f"the run returned to a checkpoint {len(returns)} times for gradients that are not "
                f"finite, and train.max_non_finite_steps is {most_returns}"
            )
        write_json(folder.passed_over_file, returns)
        append_event(
            folder.events_file,
            "numbers",
            f"going back to step {step} and on with batch {next_batch}",
        )
    set_aside(folder.checkpoints, newer_than=step)
    truncate_metrics(folder.metrics_file, step)
    offsets = [r["next_batch"] - step for r in returns if r["step"] == step]
    return {
        "token": token,
        "path": str(newest.path) if newest is not None else None,
        "batch_offset": offsets[-1] if offsets else None,
    }


def _read_returns(file: Path) -> list[dict[str, int]]:
    try:
        returns = json.loads(file.read_bytes())
        return [{key: int(r[key]) for key in ("step", "next_batch")} for r in returns]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise BadInput(
            f"{file} is damaged: remove it to train on the batches it left out"
        ) from None


def newest_step(folder: RunFolder) -> int:
    """The step of the newest good checkpoint; 0 without any."""
    newest, _ = find_newest(folder.checkpoints)
    return newest.step if newest is not None else 0
