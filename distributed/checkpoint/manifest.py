"""`manifest.json` of a checkpoint: what it holds, sealed by a checksum of its own.

The last field, `sha256`, is the checksum of the file's bytes without that field. A reader encodes
what it parsed once more: any byte that differs from what was written, white space included, is
found.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distributed.errors import BadInput
from distributed.files import TRANSIENT_ERRORS, encode_json, write_atomically

FORMAT, VERSION = "sparsebert-checkpoint", 2
MANIFEST = "manifest.json"
STEP_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
_FILE_NAME = re.compile(r"rank-[0-9]{5,9}\.safetensors")
_SEAL = "sha256"
# Seconds. A server that failed over answers again after some; a file that does not is passed over.
_PAUSES = (0.5, 1.5, 3.0, 5.0)

T = TypeVar("T")


class BadCheckpoint(BadInput):
    """A checkpoint that cannot be used; the message names the file and the reason."""


class FileRecord(BaseModel):
    """A rank's file as it was written."""

    model_config = ConfigDict(strict=True, frozen=True)

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """A checkpoint's contents; `state` is its writer's, and a later release may add fields."""

    model_config = ConfigDict(strict=True, frozen=True)

    step: int = Field(ge=0)
    world_size: int = Field(ge=1)
    optimizer_steps: int = Field(ge=0)
    parameters: dict[str, int]
    files: dict[str, FileRecord]
    state: dict[str, Any]


def write_manifest(folder: Path, fields: Mapping[str, Any]) -> None:
    """Write `fields` (those of `Manifest`) with format, version and seal."""
    content = {"format": FORMAT, "version": VERSION, **fields}
    write_atomically(folder / MANIFEST, seal(content))


def seal(content: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest with this content."""
    digest = hashlib.sha256(encode_json(dict(content))).hexdigest()
    return encode_json({**content, _SEAL: digest})


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint folder `path`, verified.

    Raises:
        BadCheckpoint: naming the file and what is wrong with it.
    """
    file = path / MANIFEST
    content = insist(lambda: _read_sealed(path), file)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise BadCheckpoint(f"{file} is damaged at {where}: {problem['msg']}") from None
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name):
            raise BadCheckpoint(f"{file} names {name!r}, a file outside its folder or not a rank's")
    named = STEP_NAME.fullmatch(path.name)
    if named and int(named[1]) != manifest.step:
        raise BadCheckpoint(f"{file} is of step {manifest.step}, its folder is not")
    return manifest


def insist(read: Callable[[], T], file: Path) -> T:
    """What `read` returns; a storage that fails for a moment is asked again.

    Raises:
        BadCheckpoint: it goes on failing.
    """
    pauses = iter(_PAUSES)
    while True:
        try:
            return read()
        except OSError as error:
            pause = next(pauses, None)
            if error.errno not in TRANSIENT_ERRORS or pause is None:
                raise BadCheckpoint(f"{file} is not readable: {error}") from error
            time.sleep(pause)


def _read_sealed(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except FileNotFoundError as error:
        raise BadCheckpoint(f"{path} is not a checkpoint: it has no {MANIFEST}") from error
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{file} is not readable: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadCheckpoint(f"{file} is not a sparsebert manifest")
    if content.get("version") != VERSION:
        raise BadCheckpoint(
            f"{file} has format version {content.get('version')}, this release reads {VERSION}"
        )
    content.pop(_SEAL, None)
    try:
        is_whole = seal(content) == data
    except (ValueError, RecursionError):  # a NaN, a lone surrogate: nothing that was written
        is_whole = False
    if not is_whole:
        raise BadCheckpoint(f"{file} is damaged: its SHA-256 is not the one that it ends with")
    return content
