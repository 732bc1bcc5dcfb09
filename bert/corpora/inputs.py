"""Paths as a user gives them -> the inputs that they stand for, each with its checksum."""

import glob
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distributed.errors import BadInput

HUB_PREFIX = "hub:"


@dataclass(frozen=True)
class Input:
    """One file, or one hub data set at a fixed revision."""

    name: str
    size_bytes: int
    sha256: str  # of a hub data set: of its name, configuration, split and revision
    hub: tuple[str, str | None, str, str] | None = None


def list_inputs(paths: Iterable[str | os.PathLike[str]]) -> list[Input]:
    """The inputs that `paths` stand for, each read once for its checksum.

    A path is a file, a folder (all files below it, sorted, without hidden ones and `.md5` files), a
    glob (sorted) or `hub:NAME[:CONFIG[:SPLIT]]` (split "train" unless given).

    Raises:
        BadInput: nothing is there, or a hub name cannot be reached.
    """
    inputs = []
    for item in paths:
        path = os.fspath(item)
        if path.startswith(HUB_PREFIX):
            inputs.append(hub_input(path))
        else:
            inputs.extend(_file_input(file) for file in _files(path))
    return inputs


def _files(path: str) -> list[Path]:
    if os.path.isfile(path):
        return [Path(path)]
    if os.path.isdir(path):
        below = Path(path)
        found = [
            file
            for file in sorted(below.rglob("*"))
            if file.is_file()
            and file.suffix != ".md5"  # NLM puts one beside each XML file
            and not any(part.startswith(".") for part in file.relative_to(below).parts)
        ]
    else:
        found = [Path(file) for file in sorted(glob.glob(path, recursive=True))]
        found = [file for file in found if file.is_file()]
    if not found:
        raise BadInput(f"There is no input file at {path}: give existing files, folders or globs.")
    return found


def _file_input(path: Path) -> Input:
    try:
        with open(path, "rb") as file:
            return Input(
                str(path),
                os.fstat(file.fileno()).st_size,
                hashlib.file_digest(file, "sha256").hexdigest(),
            )
    except OSError as error:
        raise BadInput(f"The input {path} cannot be read ({error.strerror}).") from None


def hub_input(path: str) -> Input:
    from huggingface_hub import HfApi  # slow to import, and seldom needed

    name, _, rest = path.removeprefix(HUB_PREFIX).partition(":")
    config, _, split = rest.partition(":")
    try:
        # One short request first: `datasets` would retry for half a minute without a network.
        revision = HfApi().dataset_info(name, timeout=30).sha
    except Exception as error:  # a dozen kinds, of three libraries
        raise BadInput(
            f"The data set {path} cannot be reached ({type(error).__name__}): check its name and "
            "the network, or give files that are on this machine."
        ) from None
    hub = (name, config or None, split or "train", str(revision))
    return Input(path, 0, hashlib.sha256(json.dumps(hub).encode()).hexdigest(), hub)
