"""Paths as a user gives them -> the inputs that they stand for, each with its format and checksum.

A file that is named is read, or refused. In a folder or a glob, what is not data is passed over and
reported: checksum files, READMEs and licences; and beside PubMed XML, as NLM delivers it, the pages
and plain texts that describe it.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bert.corpora.formats import Format, detect_format, inspect_file
from bert.corpora.hub import HUB_PREFIX, HubDataSet, find_data_set
from bert.corpora.manifest import PassedOver, Source
from bert.corpora.text_files import Unread
from distributed.errors import BadInput

# Files that by their names are not data but lie beside it, and what they are.
BESIDE_DATA = (
    (
        re.compile(r".+\.(md5|sha1|sha256|sha512|crc|asc|sig)|(md5|sha\d+)sums?(\.txt)?", re.I),
        "checksum",
    ),
    (
        re.compile(
            r"(readme|licen[sc]e|copying|notice|changelog|citation)(\.(txt|md|rst|html?|cff|bib))?",
            re.I,
        ),
        "README or licence",
    ),
    (re.compile(r"dataset_infos?\.json"), "description of a data set"),
)
NAMED_IN_ERROR = 3


@dataclass(frozen=True)
class Input:
    """One file, or one hub data set at a fixed revision."""

    name: str
    size_bytes: int
    sha256: str  # of a hub data set: of its name, configuration, split and revision
    hub: HubDataSet | None = None
    format: Format = "hub"


class Inputs(NamedTuple):
    """What is read, in order, and what is passed over."""

    read: list[Input]
    passed_over: list[PassedOver]


def list_inputs(source: Source, paths: Iterable[str | os.PathLike[str]]) -> Inputs:
    """The inputs that `paths` stand for. Each is read once for its checksum.

    A path is a file, a folder (all files below it, sorted, without hidden ones), a glob (sorted) or
    `hub:NAME[:CONFIG[:SPLIT]]` (split "train" unless given).

    Raises:
        BadInput: nothing is there, a file is in a form that `source` does not read, or a hub name
            cannot be reached.
    """
    found: list[tuple[Path, Format] | str] = []
    passed_over: list[PassedOver] = []
    for item in paths:
        path = os.fspath(item)
        if path.startswith(HUB_PREFIX):
            found.append(path)
        elif os.path.isfile(path):
            found.append((Path(path), detect_format(Path(path))))
        else:
            files, others = _pick(source, _files(path))
            if not files:
                raise _no_input(path, others)
            found.extend(files)
            passed_over.extend(others)
    for name in found:
        if not isinstance(name, str) and name[1] == "xml" and source != "pubmed":
            raise BadInput(
                f"{name[0]} is PubMed XML, which --source {source} does not read: use --source "
                "pubmed."
            )
    # Only now what takes long: a file in a wrong form has been refused before.
    read = [_hub_input(name) if isinstance(name, str) else _file_input(*name) for name in found]
    return Inputs(read, passed_over)


def _files(path: str) -> list[Path]:
    if os.path.isdir(path):
        below = Path(path)
        return [
            file
            for file in sorted(below.rglob("*"))
            if _is_there(file)
            and not any(part.startswith(".") for part in file.relative_to(below).parts)
        ]
    found = [Path(file) for file in sorted(glob.glob(path, recursive=True))]
    return [file for file in found if _is_there(file)]


def _is_there(path: Path) -> bool:
    if path.is_symlink() and not path.exists():
        raise BadInput(f"{path} is a link to a file that is not there: fetch that file.")
    return path.is_file()


def _pick(
    source: Source, files: Sequence[Path]
) -> tuple[list[tuple[Path, Format]], list[PassedOver]]:
    """Which of the files of a folder are read, and which are not."""
    kinds = {file: _name_beside_data(file) or inspect_file(file) for file in files}
    # NLM's folders hold pages and texts about the XML files.
    is_nlm = source == "pubmed" and "xml" in kinds.values()
    picked: list[tuple[Path, Format]] = []
    passed_over = []
    for file, kind in kinds.items():
        if isinstance(kind, PassedOver):
            passed_over.append(kind)
        elif is_nlm and kind == "text":
            passed_over.append(PassedOver(str(file), "plain text beside PubMed XML"))
        elif not isinstance(kind, Unread):
            picked.append((file, kind))
        elif is_nlm and not kind.holds_text:
            passed_over.append(PassedOver(str(file), kind.what))
        else:
            raise kind.error(file)
    return picked, passed_over


def _name_beside_data(file: Path) -> PassedOver | None:
    for pattern, reason in BESIDE_DATA:
        if pattern.fullmatch(file.name):
            return PassedOver(str(file), reason)
    return None


def _no_input(path: str, passed_over: Sequence[PassedOver]) -> BadInput:
    names = ", ".join(Path(item.name).name for item in passed_over[:NAMED_IN_ERROR])
    more = ", ..." if len(passed_over) > NAMED_IN_ERROR else ""
    but = f" but {names}{more}, which hold no corpus" if passed_over else ""
    return BadInput(
        f"There is no input file at {path}{but}: give existing files, folders or globs."
    )


def _file_input(path: Path, format: Format) -> Input:
    try:
        with open(path, "rb") as file:
            return Input(
                str(path),
                os.fstat(file.fileno()).st_size,
                hashlib.file_digest(file, "sha256").hexdigest(),
                format=format,
            )
    except OSError as error:
        raise BadInput(f"The input {path} cannot be read ({error.strerror}).") from None


def _hub_input(path: str) -> Input:
    hub = find_data_set(path)
    return Input(path, 0, hashlib.sha256(json.dumps(hub).encode()).hexdigest(), hub)
