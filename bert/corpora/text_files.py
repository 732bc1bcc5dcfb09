"""What every reader of text files needs: their bytes, what a file is if it is no text, bad bytes.

`find_container` recognises binary and compressed forms by their first bytes (never by the name of
the file), so that a reader can say what it was given. `find_not_utf8` finds the line of the first
byte that is not UTF-8. Both work on the bytes after gzip.
"""

import codecs
import contextlib
import errno
import gzip
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from distributed.errors import BadInput, first_line

BINARY_BYTES = 1024  # first bytes that show whether a file is binary


class Unread(NamedTuple):
    """Content that is not read as text: what it is, and what the user can do."""

    what: str
    advice: str
    holds_text: bool = True  # False: no text to train on is lost if the file is left out

    def error(self, place: object) -> BadInput:
        return BadInput(f"{place} is {self.what}, which is not read: {self.advice}.")


DECOMPRESS = "decompress it, or compress it with gzip instead"
UNPACK = "unpack it and give the files in it"
CONVERT = "convert it to plain text"
EXPORT = "export its text as JSON lines or Parquet"
# (offset, first bytes, what it is, advice). The names are those that people search for.
SIGNATURES = (
    (0, b"\x1f\x8b", "gzip data", "decompress it once"),
    (0, b"\xfd7zXZ\0", "an xz file (.xz)", DECOMPRESS),
    (0, b"]\0\0", "an LZMA file (.lzma)", DECOMPRESS),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file (.zst)", DECOMPRESS),
    (0, b"\x04\x22\x4d\x18", "an LZ4 file (.lz4)", DECOMPRESS),
    (0, b"\x02\x21\x4c\x18", "an LZ4 file (.lz4)", DECOMPRESS),
    (0, b"\xff\x06\0\0sNaPpY", "a Snappy file (.sz)", DECOMPRESS),
    (0, b"\x89LZO\0", "an lzop file (.lzo)", DECOMPRESS),
    (0, b"LZIP\x01", "an lzip file (.lz)", DECOMPRESS),
    (0, b"\x1f\x9d", "a file of Unix compress (.Z)", DECOMPRESS),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive (.7z)", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive (.rar)", UNPACK),
    (0, b"!<arch>\n", "a Unix archive (.a or .deb)", UNPACK),
    (0, b"%PDF-", "a PDF document", CONVERT),
    (0, b"%!PS", "a PostScript document", CONVERT),
    (0, b"{\\rtf", "an RTF document", CONVERT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (.doc, .xls)", CONVERT),
    (0, b"AT&TFORM", "a DjVu document", CONVERT),
    (60, b"BOOKMOBI", "a Mobipocket e-book (.mobi)", CONVERT),
    (0, b"ZIM\x04", "a ZIM file (Kiwix)", EXPORT),
    (0, b"SQLite format 3\0", "an SQLite database", EXPORT),
    (0, b"ARROW1\0\0", "an Arrow or Feather file", EXPORT),
    (0, b"\xff\xff\xff\xff", "an Arrow stream (datasets' save_to_disk writes it)", EXPORT),
    (0, b"Obj\x01", "an Avro file", EXPORT),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", EXPORT),
    (0, b"\x93NUMPY", "a numpy array (.npy)", EXPORT),
    (0, b"\x89PNG\r\n", "a PNG image", "leave it out"),
    (0, b"\xff\xd8\xff", "a JPEG image", "leave it out"),
)
# Letters that a text may begin with too: these count in a binary file only.
WORD_SIGNATURES = (
    (b"PARE", "an encrypted Parquet file", "decrypt it"),
    (b"ORC", "an ORC file", EXPORT),
    (b"FEA1", "a Feather file", EXPORT),
    (b"GIF8", "a GIF image", "leave it out"),
)
NO_TEXT = ("image", "PDF", "PostScript")
ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
CPIO = re.compile(rb"07070[12][0-9A-Fa-f]{104}")
BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
PICKLE = re.compile(rb"\x80[\x02-\x05][\x00-\xff]")
CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08PK")
# Zip archives that are documents or data, told by the name of a member in their first bytes.
ZIP_MEMBERS = (
    (b"word/", "a Word document (.docx)", CONVERT),
    (b"xl/", "an Excel workbook (.xlsx)", EXPORT),
    (b"ppt/", "a PowerPoint file (.pptx)", CONVERT),
    (b"application/epub+zip", "an EPUB e-book", CONVERT),
    (b"application/vnd.oasis", "an OpenDocument file (.odt, .ods)", CONVERT),
    (b"[Content_Types].xml", "an Office document (.docx, .xlsx)", CONVERT),
    (b"/data.pkl", "a PyTorch file (.pt)", EXPORT),
    (b".npy", "a numpy archive (.npz)", EXPORT),
)
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32LE"),
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed if they are gzip."""
    with open(path, "rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if is_gzip:
            with gzip.open(raw) as unpacked:
                yield cast(IO[bytes], unpacked)
        else:
            yield raw


def unreadable(path: Path, error: Exception) -> BadInput:
    """The true reason why reading `path` failed: its bytes, or the storage that they are on."""
    if isinstance(error, UnicodeDecodeError):
        with open_bytes(path) as stream:
            bad = find_not_utf8(stream)
        if bad is not None:
            return bad.error(path)
    if isinstance(error, gzip.BadGzipFile) and "Not a gzipped file" in str(error):
        # The file begins as gzip does, or it would have been read as it is.
        return BadInput(f"{path} has other bytes after its gzip data: fetch it again.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return BadInput(
            f"There is no space left in {tempfile.gettempdir()}, where {path} is unpacked: free "
            "some, or set TMPDIR to another folder."
        )
    if isinstance(error, OSError) and error.strerror:
        return BadInput(
            f"{path} cannot be read ({error.strerror}): check its permissions and its disk."
        )
    return BadInput(f"{path} is damaged or incomplete ({first_line(error)}): fetch it again.")


def find_container(head: bytes) -> Unread | None:
    """What `head`, the first bytes of a file after gzip, is if it is no text; None if it may be.

    Parquet is None too: some readers take it.
    """
    if head.startswith(b"PAR1"):
        return None
    for offset, signature, what, advice in SIGNATURES:
        if head.startswith(signature, offset):
            return Unread(what, advice, not any(word in what for word in NO_TEXT))
    if ZSTD_SKIPPABLE.match(head):
        return Unread("a Zstandard or LZ4 file (.zst, .lz4)", DECOMPRESS)
    if BZIP2.match(head):
        return Unread("a bzip2 file (.bz2)", DECOMPRESS)
    if CPIO.match(head):
        return Unread("a cpio archive", UNPACK)
    if PICKLE.match(head):
        return Unread("a Python pickle", EXPORT)
    if head.startswith(ZIP_STARTS):
        return _name_zip(head)
    if _is_tar(head):
        return Unread("a tar archive (.tar)", UNPACK)
    encoding = _find_wide_encoding(head[:BINARY_BYTES])
    if encoding is not None:
        how = f"convert it to UTF-8, for example with iconv -f {encoding} -t UTF-8"
        return Unread(f"{encoding} text", how)
    if _is_binary(head[:BINARY_BYTES]):
        for signature, what, advice in WORD_SIGNATURES:
            if head.startswith(signature):
                return Unread(what, advice, "image" not in what)
        how = f"{EXPORT}, or fetch it again if it was text"
        return Unread("a binary file of an unknown form", how)
    return None


def _is_binary(head: bytes) -> bool:
    """By a NUL byte, or by control characters in what is not UTF-8."""
    if b"\0" in head:
        return True
    try:
        codecs.utf_8_decode(head, "strict", False)
    except UnicodeDecodeError:
        return len(CONTROLS.findall(head)) >= 4
    return False


def _name_zip(head: bytes) -> Unread:
    for member, what, advice in ZIP_MEMBERS:
        if member in head:
            return Unread(what, advice)
    return Unread("a zip archive (.zip)", UNPACK)


def _is_tar(head: bytes) -> bool:
    """By the checksum in the header of the first member, which old tar files have too."""
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _find_wide_encoding(head: bytes) -> str | None:
    """UTF-16 or UTF-32, by its byte order mark or by where its NUL bytes are."""
    for mark, name in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    size = len(head) // 4 * 4
    if size < 8:
        return None
    nul_shares = [head[start:size:4].count(0) / (size / 4) for start in range(4)]
    is_nul = [share > 0.7 for share in nul_shares]
    has_none = [share < 0.1 for share in nul_shares]
    if is_nul == [False, True, True, True] and has_none[0]:
        return "UTF-32LE"
    if is_nul == [True, True, True, False] and has_none[3]:
        return "UTF-32BE"
    if is_nul == [False, True, False, True] and has_none[0] and has_none[2]:
        return "UTF-16LE"
    if is_nul == [True, False, True, False] and has_none[1] and has_none[3]:
        return "UTF-16BE"
    return None


class NotUtf8(NamedTuple):
    """The first byte of a text that is not UTF-8."""

    line: int  # from 1; a line ends with LF, CR LF or CR, as in Python's text files
    byte: int
    is_cut: bool  # the text may end within a character

    def error(self, path: Path) -> BadInput:
        also = ", or fetch it again if it is incomplete" if self.is_cut else ""
        return BadInput(
            f"{path} line {self.line} is not UTF-8 text (byte 0x{self.byte:02X}): convert the "
            f"file, for example with iconv -f WINDOWS-1252 -t UTF-8 if it is Windows-1252{also}."
        )


def find_not_utf8(stream: IO[bytes], *, chunk_bytes: int = 1 << 20) -> NotUtf8 | None:
    """The first byte of `stream` that is not UTF-8, None if there is none."""
    line = 1
    rest = b""  # the start of a character whose end is in the next chunk
    after_cr = False
    while True:
        chunk = stream.read(chunk_bytes)
        data = rest + chunk
        try:
            _, used = codecs.utf_8_decode(data, "strict", not chunk)
        except UnicodeDecodeError as error:
            line += _count_line_ends(data[: error.start], after_cr)
            is_cut = not chunk and error.reason == "unexpected end of data"
            return NotUtf8(line, data[error.start], is_cut)
        if not chunk:
            return None
        line += _count_line_ends(data[:used], after_cr)
        after_cr = data[:used].endswith(b"\r") or (not used and after_cr)
        rest = data[used:]


def _count_line_ends(data: bytes, after_cr: bool) -> int:
    both = data.count(b"\r\n") + (after_cr and data.startswith(b"\n"))
    return data.count(b"\n") + data.count(b"\r") - both
