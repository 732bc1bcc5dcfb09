"""The WordPiece vocabulary: token <-> id, special ids, and fast encoding of many documents.

Encoding goes through the Rust `tokenizers` library (all cores) and gives exactly the ids of
`transformers.BertTokenizerFast(..., split_special_tokens=True)` without special tokens: text that
happens to spell "[MASK]" is ordinary text, so a corpus cannot smuggle a special id into a batch.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from distributed.errors import BadInput

TokenArray = npt.NDArray[np.unsignedinteger]
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Vocabulary:
    """A BERT vocabulary: two are the same if `sha256` (of the file) and `lower_case` agree."""

    path: Path
    tokens: tuple[str, ...] = field(repr=False)
    sha256: str
    lower_case: bool
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)

    @property
    def token_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type that token shards may use: uint16 up to 65,536 tokens."""
        return np.dtype(np.uint16 if self.size <= 1 << 16 else np.uint32)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        ids = {token: index for index, token in enumerate(self.tokens)}
        tokenizer = Tokenizer(WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=True,
            strip_accents=None,  # follows `lowercase`, as in BERT
            lowercase=self.lower_case,
        )
        tokenizer.pre_tokenizer = BertPreTokenizer()
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
        return tokenizer

    def encode(self, texts: Sequence[str]) -> list[TokenArray]:
        """Token ids of each text, `token_dtype [length]`, without special tokens around it.

        The only special id that can occur is `unk_id`.
        """
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.token_dtype) for encoding in encodings]


def load_vocabulary(path: str | os.PathLike[str], *, lower_case: bool | None = None) -> Vocabulary:
    """Read a vocabulary file: UTF-8, one token a line, the id being the line number from 0.

    `lower_case` None decides from the file: a vocabulary in which no ordinary token has a capital
    letter can only be meant for lower-cased text.

    Raises:
        BadInput: the file is missing or not UTF-8, has an empty line or a repeated token, or lacks
            one of the five special tokens.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise BadInput(
            f"The vocabulary {path} cannot be read ({error.strerror}): "
            "give the path of a BERT vocab.txt."
        ) from None
    except UnicodeDecodeError:
        raise BadInput(
            f"The vocabulary {path} is not UTF-8 text: give a BERT vocab.txt with one token a line."
        ) from None
    # Not splitlines(): tokens such as U+2028 or U+0085 are in real vocabularies.
    tokens = tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))
    ids: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if not token:
            raise BadInput(f"The vocabulary {path} has an empty line {index + 1}: remove it.")
        if token in ids:
            raise BadInput(
                f"The vocabulary {path} has {token!r} on line {ids[token] + 1} and again on line "
                f"{index + 1}: each token may occur once."
            )
        ids[token] = index
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing:
        raise BadInput(
            f"The vocabulary {path} lacks {', '.join(missing)}: "
            "add a line for each special token of BERT."
        )
    if lower_case is None:
        lower_case = not any(_has_capital(token) for token in tokens)
    special_ids = (ids[token] for token in SPECIAL_TOKENS)
    return Vocabulary(path, tokens, hashlib.sha256(data).hexdigest(), lower_case, *special_ids)


def _has_capital(token: str) -> bool:
    in_brackets = token.startswith("[") and token.endswith("]")
    return token != token.lower() and not in_brackets
