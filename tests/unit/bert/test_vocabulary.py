import gzip
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizerFast

from bert.vocabulary import load_vocabulary
from distributed.errors import BadInput

SAMPLES = Path(__file__).parents[3] / "samples"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ODD_TEXTS = [
    "",
    " \t\n",
    "Naïve café Ångström — “quoted”… 2,3-dihydroxy",
    "中文 text 漢字 and العربية עברית ไทย",
    "emoji \U0001f600\U0001f1e9\U0001f1ea zero\u200bwidth soft\u00adhyphen \ufffd nul\0 bell\a",
    "x" * 101 + " " + "y" * 100,
    "İstanbul STRASSE ß ﬁ ① e\u0301",
    "beta\u2028line\u0085next\u00a0space",
    "[MASK] [SEP] [CLS] [PAD] [UNK] [mask] ##ing [unused1]",
]


def write(path: Path, tokens: list[str]) -> Path:
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


def real_texts() -> list[str]:
    texts = []
    for name in ("wikipedia", "books"):
        with gzip.open(SAMPLES / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in islice(lines, 12)]
    return texts


def test_encoding_equals_the_hugging_face_tokenizer_on_real_and_odd_text() -> None:
    vocabulary = load_vocabulary(SAMPLES / "vocab.txt")
    oracle = BertTokenizerFast(str(SAMPLES / "vocab.txt"), split_special_tokens=True)
    texts = real_texts() + ODD_TEXTS
    expected = oracle(texts, add_special_tokens=False)["input_ids"]
    for ids, wanted in zip(vocabulary.encode(texts), expected, strict=True):
        assert ids.dtype == np.uint16
        assert ids.tolist() == wanted


def test_cased_encoding_equals_the_hugging_face_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "cased.txt", [*SPECIAL, "The", "the", "caf", "##é", "##e", "T", "##he"])
    vocabulary = load_vocabulary(path)
    assert not vocabulary.lower_case
    oracle = BertTokenizerFast(str(path), do_lower_case=False, split_special_tokens=True)
    texts = ["The the café cafe THE"]
    expected = oracle(texts, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for ids in vocabulary.encode(texts)] == expected


def test_a_text_cannot_spell_a_special_token() -> None:
    vocabulary = load_vocabulary(SAMPLES / "vocab.txt")
    (ids,) = vocabulary.encode(["[PAD] [CLS] [SEP] [MASK] [UNK]"])
    assert not set(ids.tolist()) & set(vocabulary.special_ids)


def test_known_ids_and_properties() -> None:
    vocabulary = load_vocabulary(SAMPLES / "vocab.txt")
    assert vocabulary.size == 30_522
    assert vocabulary.special_ids == (0, 100, 101, 102, 103)
    assert vocabulary.tokens[1996] == "the" and vocabulary.tokens[7592] == "hello"
    assert vocabulary.sha256.startswith("07eced375cec144d")
    assert vocabulary.lower_case
    assert vocabulary.token_dtype == np.uint16


def test_large_vocabulary_needs_uint32(tmp_path: Path) -> None:
    path = write(tmp_path / "v.txt", [*SPECIAL, *(f"word{i}" for i in range(1 << 16))])
    vocabulary = load_vocabulary(path)
    assert vocabulary.token_dtype == np.uint32
    assert vocabulary.encode([f"word{(1 << 16) - 1}"])[0].tolist() == [vocabulary.size - 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("\n".join(SPECIAL) + "\nthe\na\nthe\n", "'the' on line 6 and again on line 8"),
        ("[PAD]\n[UNK]\n[CLS]\nthe\n", r"lacks \[SEP\], \[MASK\]"),
        ("[PAD]\n\n[UNK]\n", "empty line 2"),
        ("", "empty line 1"),
    ],
)
def test_bad_vocabulary_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "v.txt"
    path.write_text(content)
    with pytest.raises(BadInput, match=said) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value)


def test_missing_or_binary_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        load_vocabulary(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    with pytest.raises(BadInput, match="not UTF-8"):
        load_vocabulary(tmp_path / "binary")
