"""Documents -> clean, distinct documents, each for training or for validation.

Whatever is left out is counted. Which documents stay and which are for validation depends on their
text alone, not on their order or on the machine.

Memory: the hashes of all documents kept, about 100 bytes each (3.7 GB for all of PubMed, 0.7 GB for
Wikipedia). It is the only thing in preparing a corpus that grows with it.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from bert.corpora.formats import Format
from bert.corpora.readers import Document

# Control characters but white space, lone surrogates (JSON can spell them), the replacement
# character, and characters without width: BERT's tokenizer drops them too, so must the hash.
INVISIBLE = re.compile(
    "[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200b-\u200f\u2060\ufeff\ufffd\ud800-\udfff]"
)
DIGEST_BYTES = 16


class CleanDocument(NamedTuple):
    text: str
    is_validation: bool
    input: str
    format: Format


def normalise_text(text: str) -> str:
    """NFC, no invisible characters, runs of white space (line breaks too) as one space."""
    return " ".join(INVISIBLE.sub("", unicodedata.normalize("NFC", text)).split())


def clean_documents(
    documents: Iterable[Document],
    *,
    validation_fraction: float,
    min_characters: int,
    dropped: Counter[str],
) -> Iterator[CleanDocument]:
    """Normalised documents of at least `min_characters`, each text once.

    Adds to `dropped`: `too_short`, `duplicates`.
    """
    seen: set[bytes] = set()
    for document in documents:
        text = normalise_text(document.text)
        if len(text) < min_characters or not text:
            dropped["too_short"] += 1
            continue
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=DIGEST_BYTES).digest()
        if digest in seen:
            dropped["duplicates"] += 1
            continue
        seen.add(digest)
        is_validation = _is_validation(digest, validation_fraction)
        yield CleanDocument(text, is_validation, document.input, document.format)


def _is_validation(digest: bytes, fraction: float) -> bool:
    return int.from_bytes(digest[:8], "big") < int(fraction * 2**64)
