"""`manifest.json` of a prepared corpus: what it was made from, what it holds, and its checksums."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bert.vocabulary import TokenizerSettings, Vocabulary
from distributed.errors import BadInput
from distributed.files import sha256_of, write_atomically

MANIFEST_NAME = "manifest.json"
UNIGRAM_COUNTS_NAME = "unigram_counts.npy"
Source = Literal["wikipedia", "books", "pubmed", "text"]


@dataclass(frozen=True)
class PassedOver:
    """A file of a folder that is not read, and what it is."""

    name: str
    reason: str


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """A file beside the manifest. Plain names only: a manifest cannot point out of its folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")
    size_bytes: int
    sha256: str


class ShardRecord(_Record):
    """Documents of one shard: the files are described in shards.py."""

    documents: int
    tokens: int
    token_file: FileRecord
    offset_file: FileRecord
    special_file: FileRecord


class InputRecord(_Record):
    name: str
    size_bytes: int
    sha256: str


class VocabularyRecord(_Record):
    size: int
    sha256: str
    lower_case: bool
    settings: TokenizerSettings | None = None  # None: BERT's


class Options(_Record):
    """What decides the content besides the inputs and the vocabulary."""

    source: Source
    validation_fraction: float
    min_characters: int


class Manifest(_Record):
    format: Literal["sparsebert-corpus"] = "sparsebert-corpus"
    format_version: Literal[1] = 1
    tool_version: str
    split: Literal["train", "validation"]
    options: Options
    inputs: list[InputRecord]
    vocabulary: VocabularyRecord
    documents: int
    tokens: int
    dropped: dict[str, int]  # of all inputs, before the split
    shards: list[ShardRecord]
    unigram_counts: FileRecord | None = None  # validation only: counts of the training split
    passed_over: list[PassedOver] = []  # written only if there are any

    def files(self) -> list[FileRecord]:
        files = [
            file
            for shard in self.shards
            for file in (shard.token_file, shard.offset_file, shard.special_file)
        ]
        return files if self.unigram_counts is None else [*files, self.unigram_counts]


def vocabulary_record(vocabulary: Vocabulary) -> VocabularyRecord:
    return VocabularyRecord(
        size=vocabulary.size,
        sha256=vocabulary.sha256,
        lower_case=vocabulary.lower_case,
        settings=vocabulary.settings if vocabulary.settings.changed() else None,
    )


def load_manifest(directory: Path) -> Manifest:
    """Raises BadInput if there is none or it cannot be understood."""
    path = directory / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError:
        raise BadInput(
            f"{directory} holds no prepared corpus (there is no {MANIFEST_NAME} in it): give a "
            "folder written by `sparsebert prepare`."
        ) from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its JSON"
        raise _prepare_again(
            directory, f"{path} is damaged or of another version, at {where}"
        ) from None


def save_manifest(manifest: Manifest, *, directory: Path) -> None:
    # Without files that were passed over, the same bytes as before there was a field for them.
    exclude = None if manifest.passed_over else {"passed_over"}
    content = manifest.model_dump_json(indent=1, exclude=exclude).encode() + b"\n"
    write_atomically(directory / MANIFEST_NAME, content)


def check_files(manifest: Manifest, *, directory: Path, verify: bool) -> None:
    """Raise BadInput if a file is missing or has another size, with `verify` another SHA-256."""
    for file in manifest.files():
        path = directory / file.name
        try:
            size_bytes = path.stat().st_size
        except OSError:
            raise _prepare_again(directory, f"{path} is missing") from None
        if size_bytes != file.size_bytes:
            raise _prepare_again(
                directory,
                f"{path} has {size_bytes} bytes where its manifest says {file.size_bytes}",
            )
        if verify and sha256_of(path) != file.sha256:
            raise _prepare_again(directory, f"{path} is damaged (its SHA-256 differs)")


def check_vocabulary(manifest: Manifest, vocabulary: Vocabulary, *, directory: Path) -> None:
    made_with, given = manifest.vocabulary, vocabulary_record(vocabulary)
    if made_with != given:
        raise _prepare_again(
            directory,
            f"{directory} was made with another vocabulary ({_describe(made_with)}) than "
            f"{vocabulary.path} ({_describe(given)})",
            how=f" with --vocab {vocabulary.path}",
        )


def _describe(vocabulary: VocabularyRecord) -> str:
    case = "uncased" if vocabulary.lower_case else "cased"
    changed = vocabulary.settings.changed() if vocabulary.settings is not None else {}
    words = changed.pop("added_words", ())
    settings = [f"{name} {json.dumps(value)}" for name, value in changed.items()]
    settings += [f"{len(words)} added words"] if words else []
    return ", ".join(
        [f"{vocabulary.size} tokens", case, *settings, f"SHA-256 {vocabulary.sha256[:12]}"]
    )


def _prepare_again(directory: Path, problem: str, *, how: str = "") -> BadInput:
    return BadInput(f"{problem}: remove {directory} and run `sparsebert prepare` again{how}.")


def save_array(array: npt.NDArray[np.generic], *, directory: Path, name: str) -> FileRecord:
    path = directory / name
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
    return FileRecord(name=name, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def load_array(path: Path, *, mapped: bool = True) -> npt.NDArray[np.generic]:
    """An array of a corpus, memory-mapped. Raises BadInput if it is not a readable .npy file."""
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _prepare_again(path.parent, f"{path} cannot be read ({error})") from None
    return np.asarray(array)  # np.memmap itself is slow to slice
