"""Token shards on disk, and the corpus that they make up.

A folder holds `manifest.json` and for each shard N of bounded size
    tokens-N.npy    uint16 (uint32 above 65,536 tokens) [tokens]   the documents, end to end
    offsets-N.npy   int64 [documents + 1]                          where each document starts
    special-N.npy   int64 [few]            positions of special ids in the text (that is, [UNK])

A document is in one shard, without special tokens around it. The third file lets packing know how
many tokens of a row may be masked without reading the tokens.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from bert.corpora.manifest import (
    FileRecord,
    ShardRecord,
    check_files,
    check_vocabulary,
    load_array,
    load_manifest,
    save_array,
)
from bert.vocabulary import TokenArray, Vocabulary
from distributed.errors import BadInput

Int64Array = npt.NDArray[np.int64]
# 64 MiB of uint16: small enough to hold in memory, large enough for few files (5.5 B tokens: 170).
SHARD_TOKENS = 1 << 25


class ShardWriter:
    """Writes documents to shards of about `shard_tokens` tokens; holds one shard in memory."""

    def __init__(
        self, directory: Path, *, vocabulary: Vocabulary, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        self.directory = directory
        self.vocabulary = vocabulary
        self.shard_tokens = shard_tokens
        self.shards: list[ShardRecord] = []
        self.documents = 0
        self.tokens = 0
        self.counts: Int64Array = np.zeros(vocabulary.size, dtype=np.int64)  # of each token
        self._pending: list[TokenArray] = []
        self._pending_tokens = 0

    def add(self, document: TokenArray) -> None:
        if self._pending and self._pending_tokens + len(document) > self.shard_tokens:
            self.flush()
        self._pending.append(document)
        self._pending_tokens += len(document)
        self.documents += 1
        self.tokens += len(document)

    def flush(self) -> None:
        """Write what is pending as a shard."""
        if not self._pending:
            return
        tokens = np.concatenate(self._pending)
        offsets = np.zeros(len(self._pending) + 1, dtype=np.int64)
        np.cumsum([len(document) for document in self._pending], out=offsets[1:])
        is_special = np.zeros(self.vocabulary.size, dtype=np.bool_)
        is_special[list(self.vocabulary.special_ids)] = True
        self.counts += np.bincount(tokens, minlength=self.vocabulary.size)
        self.shards.append(
            ShardRecord(
                documents=len(self._pending),
                tokens=len(tokens),
                token_file=self._save("tokens", tokens),
                offset_file=self._save("offsets", offsets),
                special_file=self._save("special", np.flatnonzero(is_special[tokens])),
            )
        )
        self._pending, self._pending_tokens = [], 0

    def _save(self, kind: str, array: npt.NDArray[np.generic]) -> FileRecord:
        name = f"{kind}-{len(self.shards):05d}.npy"
        return save_array(array, directory=self.directory, name=name)


@dataclass(frozen=True, eq=False)
class Shard:
    tokens: TokenArray  # [tokens], memory-mapped
    offsets: Int64Array  # [documents + 1], memory-mapped
    special: Int64Array  # sorted positions in `tokens`

    @property
    def lengths(self) -> Int64Array:
        """Tokens of each document, `int64 [documents]`."""
        return np.diff(self.offsets)


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """The documents of one or more prepared folders, read through memory maps."""

    shards: tuple[Shard, ...]
    documents: int
    tokens: int
    fingerprint: str  # hex SHA-256 over the shards' checksums; the folders' paths are not in it

    @property
    def lengths(self) -> Int64Array:
        """Tokens of each document, `int64 [documents]`, in the order of the shards."""
        return np.concatenate([shard.lengths for shard in self.shards])

    def read(self, *, shard: int, start: int, length: int) -> TokenArray:
        """A view of `length` tokens of a shard, from position `start`."""
        return self.shards[shard].tokens[start : start + length]


def open_corpus(
    paths: Sequence[Path], *, vocabulary: Vocabulary, verify: bool = False
) -> TokenCorpus:
    """Open prepared folders as one corpus. File sizes are always checked, checksums if `verify`.

    Raises:
        BadInput: a folder is missing, incomplete or damaged, or made with another vocabulary.
    """
    if not paths:
        raise BadInput("No corpus is given: name at least one folder in data.shards.")
    shards: list[Shard] = []
    documents = tokens = 0
    digest = hashlib.sha256()
    for directory in map(Path, paths):
        manifest = load_manifest(directory)
        check_vocabulary(manifest, vocabulary, directory=directory)
        check_files(manifest, directory=directory, verify=verify)
        for record in manifest.shards:
            shards.append(_open_shard(record, directory=directory, vocabulary=vocabulary))
            for file in (record.token_file, record.offset_file, record.special_file):
                digest.update(bytes.fromhex(file.sha256))
        documents += manifest.documents
        tokens += manifest.tokens
    return TokenCorpus(tuple(shards), documents, tokens, digest.hexdigest())


def _open_shard(record: ShardRecord, *, directory: Path, vocabulary: Vocabulary) -> Shard:
    tokens = cast(TokenArray, load_array(directory / record.token_file.name))
    offsets = cast(Int64Array, load_array(directory / record.offset_file.name))
    # Not mapped: it may be empty, which cannot be.
    special = cast(Int64Array, load_array(directory / record.special_file.name, mapped=False))
    is_sound = (
        tokens.dtype == vocabulary.token_dtype
        and tokens.shape == (record.tokens,)
        and offsets.dtype == special.dtype == np.int64
        and offsets.shape == (record.documents + 1,)
        and offsets[0] == 0
        and offsets[-1] == record.tokens
        and bool(np.all(offsets[1:] >= offsets[:-1]))
    )
    if not is_sound:
        raise BadInput(
            f"{directory / record.token_file.name} and its offsets do not agree with the manifest: "
            f"remove {directory} and run `sparsebert prepare` again."
        )
    return Shard(tokens, offsets, special)
