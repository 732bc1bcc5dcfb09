"""Files that are whole or not there: the one atomic writer, and checksums."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any

# Errors of network storage that a retry may not meet again.
TRANSIENT_ERRORS = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EAGAIN,
    }
)


def write_atomically(file: Path, data: bytes) -> None:
    """Replace `file`: a reader sees all of the old or all of the new, whatever crashes.

    A new file is as readable as the process's umask allows; an old one keeps its permissions.

    Raises:
        OSError: nothing was replaced and no temporary file is left.
    """
    writer = f"{os.getpid()}-{threading.get_native_id()}"
    temporary = file.with_name(f".{file.name}.{writer}")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        if file.exists():
            os.chmod(temporary, stat.S_IMODE(file.stat().st_mode))
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_json(file: Path, value: Any) -> None:
    """Replace `file` by `value` as JSON, atomically.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which JSON has no word for.
    """
    write_atomically(file, encode_json(value))


def encode_json(value: Any) -> bytes:
    """`value` as this project writes JSON files: equal values give equal bytes."""
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


def append_whole(file: Path, data: bytes) -> None:
    """Append all of `data`, or nothing if the disk does not take it.

    Raises:
        OSError: nothing was appended.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        before = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's content, in hex digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in `folder` outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder at once for whoever looks by name; a crash in between leaves a hidden one."""
    hidden = folder.with_name(f".{folder.name.lstrip('.')}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.replace(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)
