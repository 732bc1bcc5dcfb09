"""Following a file of JSON lines that other processes write: metrics, events, failures."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from training.folder import parse_record


class Tail:
    """Reads what is new in a file of JSON lines, also after it was replaced by a shorter one."""

    def __init__(self, path: Path, *, skip_existing: bool = False) -> None:
        """The file need not be there yet; `skip_existing` leaves out what is in it now."""
        self._path = path
        # Held open, so that its inode cannot be given to the file that replaces it.
        self._file: BinaryIO | None = None
        self._partial = b""
        # Hashes of the lines that were delivered: a replaced file repeats the first of them.
        self._seen: list[int] = []
        self._line = 0
        if skip_existing:
            self.poll()

    def close(self) -> None:
        """Release the file."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def poll(self) -> list[dict[str, Any]]:
        """Records that came since the last call; none while storage does not answer."""
        try:
            replaced = self._reopen()
            if self._file is None:
                return []
            data = self._file.read()
        except OSError:  # ESTALE too: what another node has replaced is gone on some storage
            self.close()
            return []
        *lines, self._partial = (self._partial + data).split(b"\n")
        records = []
        for line in lines:
            if self._is_repeated(line):
                continue
            record = parse_record(line)
            if record is not None:
                records.append(record)
        if replaced:
            del self._seen[self._line :]  # cut off; the restarted run will write these steps anew
        return records

    def _is_repeated(self, line: bytes) -> bool:
        digest, at = hash(line), self._line
        self._line += 1
        if at < len(self._seen) and self._seen[at] == digest:
            return True
        del self._seen[at:]
        self._seen.append(digest)
        return False

    def _reopen(self) -> bool:
        """Reopen the file, so that network storage shows its growth; True if it is another file."""
        try:
            opened = open(self._path, "rb")  # noqa: SIM115 (closed by close)
        except FileNotFoundError:
            return False
        try:
            is_same = self._file is not None and _continues(opened, self._file)
        except OSError:
            opened.close()
            raise
        if self._file is not None:
            if is_same:
                opened.seek(self._file.tell())
            self._file.close()
        self._file = opened
        if not is_same:
            self._partial, self._line = b"", 0
        return not is_same


def _continues(opened: BinaryIO, held: BinaryIO) -> bool:
    """Whether `opened` is the file that `held` is, and not shorter than what was read of it."""
    now, before = os.fstat(opened.fileno()), os.fstat(held.fileno())
    is_same = (now.st_dev, now.st_ino) == (before.st_dev, before.st_ino)
    return is_same and now.st_size >= held.tell()
