import string
from pathlib import Path

import pytest

from bert.vocabulary import Vocabulary, load_vocabulary

WORDS = ("the", "cat", "sat", "on", "mat", "who", "in", "##s", "##ting")


@pytest.fixture
def vocabulary(tmp_path: Path) -> Vocabulary:
    """Words above, and every letter, so that any word has at least its characters as pieces."""
    letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", ".", *letters]
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join(dict.fromkeys([*tokens, *WORDS])) + "\n")
    return load_vocabulary(file)
