"""Arrays kept on disk by a key of all they were computed from: atomic, verified, never trusted.

A cache entry is a folder `packing-KEY` with one .npy for each array and `entry.json` with the key
and their checksums. Whatever is wrong with an entry, it is computed anew; a cache that cannot be
written is done without. Ranks may race: each computes the same, the first to rename wins.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distributed.files import sha256_of, write_json

logger = logging.getLogger(__name__)
ENTRY_NAME = "entry.json"

Arrays = dict[str, npt.NDArray[Any]]


def load_cached(
    cache_dir: Path, *, key: Mapping[str, object], names: Sequence[str]
) -> Arrays | None:
    """The memory-mapped arrays of an entry, None if there is none or it is damaged."""
    entry = _entry(cache_dir, key)
    if not entry.exists():
        return None
    try:
        checksums = json.loads((entry / ENTRY_NAME).read_bytes())["sha256"]
        arrays = {}
        for name in names:
            path = entry / f"{name}.npy"
            if sha256_of(path) != checksums[name]:
                raise ValueError(f"{path.name} is damaged")
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("The packing cache %s is not usable (%s): computed anew.", entry, error)
        return None
    return arrays


def save_cached(cache_dir: Path, *, key: Mapping[str, object], arrays: Arrays) -> None:
    """Write an entry, in place of a damaged one. Only warns if it cannot."""
    temporary = None
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".packing-", dir=cache_dir))
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        checksums = {name: sha256_of(temporary / f"{name}.npy") for name in arrays}
        write_json(temporary / ENTRY_NAME, {"key": dict(key), "sha256": checksums})
        entry = _entry(cache_dir, key)
        if entry.exists() and load_cached(cache_dir, key=key, names=list(arrays)) is None:
            shutil.rmtree(entry, ignore_errors=True)
        if not entry.exists():
            os.replace(temporary, entry)
    except OSError as error:
        logger.warning("The packing cache in %s is not written (%s).", cache_dir, error)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _entry(cache_dir: Path, key: Mapping[str, object]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir / f"packing-{digest[:24]}"
