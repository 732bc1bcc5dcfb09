import bz2
import errno
import gzip
import io
import lzma
import pickle
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bert.corpora.text_files import find_container, find_not_utf8, open_bytes, unreadable

TEXT = b"Plain text that somebody wrote, long enough to be compressed by anything.\n" * 9


def make_zip(*names: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, "application/epub+zip" if name == "mimetype" else TEXT)
    return made.getvalue()


def make_tar(*, with_magic: bool = True) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT))
    data = bytearray(made.getvalue())
    if not with_magic:  # as tar of Unix V7 wrote them: a checksum and no magic
        data[257:265] = bytes(8)
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def make_arrow(opened: Callable[..., pa.ipc.RecordBatchStreamWriter]) -> bytes:
    made = io.BytesIO()
    table = pa.table({"text": ["a", "b"]})
    with opened(made, table.schema) as writer:
        writer.write_table(table)
    return made.getvalue()


def write_with(write: Callable[[io.BytesIO], object]) -> bytes:
    made = io.BytesIO()
    write(made)
    return made.getvalue()


def make_sqlite() -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE pages (text)")
    return database.serialize()


TABLE = pa.table({"text": ["a", "b"]})
# Each made by the library that owns the form, where there is one here.
CONTAINERS = {
    ".bz2": bz2.compress(TEXT),
    ".xz": lzma.compress(TEXT),
    ".lzma": lzma.compress(TEXT, format=lzma.FORMAT_ALONE),
    ".zst": pa.compress(TEXT, codec="zstd", asbytes=True),
    ".lz4": pa.Codec("lz4").compress(TEXT, asbytes=True),
    "gzip data": gzip.compress(TEXT),
    ".zip": make_zip("a.txt"),
    ".docx": make_zip("[Content_Types].xml", "word/document.xml"),
    ".xlsx": make_zip("[Content_Types].xml", "xl/workbook.xml"),
    "EPUB": make_zip("mimetype"),
    ".npz": write_with(lambda made: np.savez(made, a=np.arange(3))),
    "tar archive": make_tar(),
    ".tar": make_tar(with_magic=False),
    ".7z": b"7z\xbc\xaf\x27\x1c\0\4",
    ".rar": b"Rar!\x1a\x07\x01\0",
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "RTF": b"{\\rtf1\\ansi text}",
    ".doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504),
    "SQLite": make_sqlite(),
    "Arrow or Feather": make_arrow(pa.ipc.new_file),
    "Arrow stream": make_arrow(pa.ipc.new_stream),
    "Feather": write_with(lambda made: pyarrow.feather.write_feather(TABLE, made)),
    "ORC": write_with(lambda made: pyarrow.orc.write_table(TABLE, made)),
    ".npy": write_with(lambda made: np.save(made, np.arange(3))),
    "pickle": pickle.dumps({"text": "a"}),
    "PNG": b"\x89PNG\r\n\x1a\n",
    "binary": b"\1\2\0\3" + TEXT,
    "binary file of an unknown form": zlib.compress(TEXT).replace(b"\0", b"\1"),
    "UTF-16LE": TEXT.decode().encode("utf-16-le"),
    "UTF-16BE": b"\xfe\xff" + "\u6587\u5b57".encode("utf-16-be"),
    "UTF-32LE": TEXT.decode().encode("utf-32-le"),
    "UTF-32BE": TEXT.decode().encode("utf-32-be"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_named_by_its_content(name: str) -> None:
    found = find_container(CONTAINERS[name][:4096])
    assert found is not None and name in found.what and found.advice


@pytest.mark.parametrize(
    "text",
    [
        "ORCHIDS AND PARENTS",
        "PK is a band",
        "BZh9 begins a file of bzip2",
        "GIF89a is a word too",
        "070701 is a date",
        "PARENTS",
        "caf\u00e9 \u6587\u5b57 \U0001f600",
        "",
    ],
)
def test_text_is_no_container(text: str) -> None:
    assert find_container(text.encode()) is None
    assert find_container(b"\xef\xbb\xbf" + text.encode()) is None


def count_lines(data: bytes) -> int:
    """As Python's text files count them, which open() does by itself."""
    return sum(1 for _ in io.TextIOWrapper(io.BytesIO(data + b"x"), encoding="latin-1"))


@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", "\u00e9\u20ac".encode(), b"\xe9"])),
    st.integers(1, 9),
)
@example([b"\r", b"\n", b"\xe9"], 1)
@example(["\u20ac".encode()[:2]], 1)
@example(["\u20ac".encode()[:2], b"\n"], 2)
def test_the_first_byte_that_is_not_utf8(parts: list[bytes], chunk_bytes: int) -> None:
    data = b"".join(parts)
    found = find_not_utf8(io.BytesIO(data), chunk_bytes=chunk_bytes)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        assert found is not None
        assert (found.line, found.byte) == (count_lines(data[: error.start]), data[error.start])
        assert found.is_cut == (error.reason == "unexpected end of data")
    else:
        assert found is None


def test_the_reason_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    def reason(content: bytes) -> str:
        path = tmp_path / "file"
        path.write_bytes(content)
        try:
            with open_bytes(path) as stream:
                stream.read().decode("utf-8")
        except (OSError, EOFError, ValueError) as error:
            return str(unreadable(path, error)).removeprefix(f"{path} ")
        raise AssertionError("it can be read")

    packed = gzip.compress(TEXT)
    assert reason(packed[:-9]).startswith("is damaged or incomplete (Compressed file ended before")
    flipped = packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]
    assert reason(flipped).startswith("is damaged or incomplete (CRC check failed")
    assert reason(packed + b"text").startswith("has other bytes after its gzip data")
    assert "line 3 is not UTF-8 text (byte 0xE9)" in reason(gzip.compress(b"a\nb\ncaf\xe9"))
    assert "fetch it again if it is incomplete" in reason("caf\u00e9".encode()[:-1])
    assert "fetch it again" not in reason(b"caf\xe9 au lait")
    full = OSError(errno.ENOSPC, "No space left on device")
    assert str(unreadable(tmp_path, full)).startswith("There is no space left in ")
    with pytest.raises(IsADirectoryError) as caught:
        tmp_path.open()
    assert "cannot be read (Is a directory)" in str(unreadable(tmp_path, caught.value))
