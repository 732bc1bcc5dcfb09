import gzip
import string
from pathlib import Path

import pytest

from bert.vocabulary import Vocabulary, load_vocabulary
from tests.unit.bert.tasks.reading import Write

WORDS = ("the", "cat", "sat", "on", "mat", "who", "in", "##s", "##ting")


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    """Words above, and every letter, so that any word has at least its characters as pieces."""
    letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", ".", *letters]
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(dict.fromkeys([*tokens, *WORDS])) + "\n")
    return load_vocabulary(file)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a text into a file, compressed if its name ends so; the file."""

    def write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return file

    return write
