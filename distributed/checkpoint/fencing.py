"""Which start of a run may write its checkpoints: the last one, and only it.

A worker that a partition cut off, and that comes back after its successor has begun, must not
damage what the successor writes. Every start has a token of its own, kept in `attempt.json`:

    new start      1. writes its token   2. removes all unfinished parts   3. looks for checkpoints
    every writer   1. writes its part   2. reads the token, and gives up unless it is its own
                   3. renames the part, onto a name that must be free

A writer that read the token before it changed has its part removed before it can rename, or has
renamed before the new start looks. Neither needs a lock, and the clocks do not matter.
"""

import contextlib
import json
import os
import uuid
from pathlib import Path

from distributed.errors import Unrecoverable
from distributed.files import remove_folder, sync_folder, write_json

_TOKEN_FILE = "attempt.json"


class Superseded(Unrecoverable):
    """Another start of the same run has taken over: this one is to end, and not to begin again."""


def claim(folder: Path) -> str:
    """Take over the checkpoint folder; the new token. One process of a start calls it, first."""
    folder.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:12]
    write_json(folder / _TOKEN_FILE, {"attempt": token})
    sync_folder(folder)
    remove_unfinished(folder)
    return token


def check_claim(folder: Path, token: str) -> None:
    """Raise unless `token` is still the last one.

    Raises:
        Superseded: it is not.
        OSError: the folder cannot be read.
    """
    try:
        current = json.loads((folder / _TOKEN_FILE).read_bytes())["attempt"]
    except FileNotFoundError:
        return  # nobody has ever claimed this folder
    if current != token:
        raise Superseded(f"{folder} belongs to a later start of this run ({current}): leaving it")


def part_folder(folder: Path, name: str, token: str) -> Path:
    """Where `name` is written before it is whole."""
    return folder / f".{name}.{token}"


def commit(folder: Path, name: str, token: str) -> Path:
    """Make a whole part visible as `name`, durably.

    Raises:
        Superseded: a later start has taken over.
        OSError: `name` is there already, or the rename failed: the part is still invisible.
    """
    final = folder / name
    check_claim(folder, token)
    part = part_folder(folder, name, token)
    sync_folder(part)
    try:
        os.rename(part, final)
    except FileNotFoundError:
        check_claim(folder, token)
        raise
    sync_folder(folder)
    return final


def remove_unfinished(folder: Path) -> None:
    """Remove dead writers' parts."""
    for part in folder.glob(".step-*"):
        if part.is_dir():
            with contextlib.suppress(OSError):
                remove_folder(part)
