"""The WordPiece vocabulary: token <-> id, special ids, and fast encoding of many documents.

Encoding goes through the Rust `tokenizers` library (all cores) and gives exactly the ids of
`transformers.BertTokenizerFast(..., split_special_tokens=True)` without special tokens: text that
happens to spell "[MASK]" is ordinary text, so a corpus cannot smuggle a special id into a batch.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from distributed.errors import BadInput
from distributed.files import write_atomically

TokenArray = npt.NDArray[np.unsignedinteger]
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENIZER_FILE = "tokenizer.json"
VOCAB_FILE = "vocab.txt"


class AddedWord(BaseModel):
    """A word that is found in a text before the text is cut into words (`tokenizer.add_tokens`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True


class TokenizerSettings(BaseModel):
    """How a tokenizer reads text, besides `lower_case`. The defaults are those of BERT."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strip_accents: bool | None = None  # None follows `lower_case`
    tokenize_chinese_chars: bool = True
    added_words: tuple[AddedWord, ...] = ()

    def changed(self) -> dict[str, Any]:
        """The settings that are not BERT's, as JSON."""
        return self.model_dump(mode="json", exclude_defaults=True)


@dataclass(frozen=True)
class Vocabulary:
    """A BERT vocabulary and how its tokenizer reads text.

    Two are the same if `sha256`, `lower_case` and `settings` agree.
    """

    path: Path
    data: bytes = field(repr=False)  # as a vocab.txt: one token a line
    words: tuple[str, ...] = field(repr=False)  # the lines of the file
    lower_case: bool
    settings: TokenizerSettings = TokenizerSettings()

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, or of the file that its words would make."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Every token by its id: the words of the file and those that were added after them."""
        added = sorted(self.settings.added_words, key=lambda word: word.id)
        return self.words + tuple(word.content for word in added if word.id >= len(self.words))

    @property
    def size(self) -> int:
        return len(self.tokens)

    @cached_property
    def special_ids(self) -> tuple[int, ...]:
        return tuple(self.tokens.index(token) for token in SPECIAL_TOKENS)

    @property
    def pad_id(self) -> int:
        return self.special_ids[0]

    @property
    def unk_id(self) -> int:
        return self.special_ids[1]

    @property
    def cls_id(self) -> int:
        return self.special_ids[2]

    @property
    def sep_id(self) -> int:
        return self.special_ids[3]

    @property
    def mask_id(self) -> int:
        return self.special_ids[4]

    @property
    def token_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest type that token shards may use: uint16 up to 65,536 tokens."""
        return np.dtype(np.uint16 if self.size <= 1 << 16 else np.uint32)

    @property
    def is_cased(self) -> bool:
        """Whether an ordinary token has a capital letter, which lower-cased text never has."""
        return is_cased(self.words)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        ids = {token: index for index, token in enumerate(self.words)}
        tokenizer = Tokenizer(WordPiece(vocab=ids, unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=self.settings.tokenize_chinese_chars,
            strip_accents=self.settings.strip_accents,
            lowercase=self.lower_case,
        )
        tokenizer.pre_tokenizer = BertPreTokenizer()
        for word in self._added_in_order():
            tokenizer.add_tokens([word])  # a new one gets the next id
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
        return tokenizer

    def encode(self, texts: Sequence[str]) -> list[TokenArray]:
        """Token ids of each text, `token_dtype [length]`, without special tokens around it.

        The only special id that can occur is `unk_id`.
        """
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.token_dtype) for encoding in encodings]

    def record(self) -> dict[str, Any]:
        """What is needed besides the file to read text as this vocabulary does; JSON."""
        return {"lower_case": self.lower_case, "settings": self.settings.changed()}

    def write(self, file: Path) -> None:
        """Write the words as a vocab.txt."""
        write_atomically(file, self.data)

    def _added_in_order(self) -> list[AddedToken]:
        special = dict(zip(self.special_ids, SPECIAL_TOKENS, strict=True))
        tokens = {i: AddedToken(token, special=True) for i, token in special.items()}
        for word in self.settings.added_words:
            if word.id not in special:
                flags = word.model_dump(exclude={"id", "content"})
                tokens[word.id] = AddedToken(word.content, **flags, special=False)
        return [tokens[i] for i in sorted(tokens)]


def load_vocabulary(
    path: str | os.PathLike[str],
    *,
    lower_case: bool | None = None,
    settings: TokenizerSettings | Mapping[str, Any] | None = None,
) -> Vocabulary:
    """Read a vocabulary: a vocab.txt, a tokenizer.json, or a Hugging Face folder with one of them.

    A vocab.txt is UTF-8 with one token a line, the id being the line number from 0. It says nothing
    of its tokenizer: `lower_case` None then decides from the words (a vocabulary in which no
    ordinary token has a capital letter can only be meant for lower-cased text), and `settings`
    None are BERT's. Of a folder or a tokenizer.json both come from its files, unless `settings`
    are given.

    Raises:
        BadInput: the file is missing or not UTF-8, has an empty line or a repeated token, or lacks
            one of the five special tokens; or the folder's tokenizer is not BERT's.
    """
    path = Path(path)
    if settings is None and (path.is_dir() or path.suffix == ".json"):
        from bert.folders.tokenizer import load_folder_vocabulary

        found = load_folder_vocabulary(path if path.is_dir() else path.parent)
        return replace(found, path=path)
    known = TokenizerSettings.model_validate(settings or {})
    file = vocabulary_file(path) if path.is_dir() else path
    data = _read_tokenizer_words(file) if file.suffix == ".json" else _read_file(file)
    words = _split_words(data, file)
    tokens = {*words, *(word.content for word in known.added_words)}
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise BadInput(
            f"The vocabulary {file} lacks {', '.join(missing)}: "
            "add a line for each special token of BERT."
        )
    if lower_case is None:
        lower_case = not is_cased(words)
    return Vocabulary(path, data, words, lower_case, known)


def vocabulary_file(folder: Path) -> Path:
    """The file that has the words of a Hugging Face folder: vocab.txt, or else tokenizer.json."""
    words, tokenizer = folder / VOCAB_FILE, folder / TOKENIZER_FILE
    return tokenizer if tokenizer.is_file() and not words.is_file() else words


def is_cased(words: Sequence[str]) -> bool:
    """Whether an ordinary word has a capital letter."""
    return any(map(_has_capital, words))


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(
            f"The vocabulary {path} cannot be read ({error.strerror}): "
            "give the path of a BERT vocab.txt."
        ) from None


def _read_tokenizer_words(path: Path) -> bytes:
    """The words of a tokenizer.json as a vocab.txt would have them."""
    try:
        ids = json.loads(_read_file(path))["model"]["vocab"]
        words = sorted(ids, key=ids.__getitem__)
        numbers = [ids[word] for word in words]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(
            f"{path} has no WordPiece vocabulary (model.vocab): give a BERT tokenizer.json."
        ) from None
    for index, number in enumerate(numbers):
        if index != number or "\n" in words[index]:
            raise BadInput(
                f"{path} has no word with the id {index} that fits a line of a vocab.txt: "
                "give the vocab.txt that it was made from."
            )
    return "".join(f"{word}\n" for word in words).encode()


def _split_words(data: bytes, path: Path) -> tuple[str, ...]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput(
            f"The vocabulary {path} is not UTF-8 text: give a BERT vocab.txt with one token a line."
        ) from None
    # Not splitlines(): tokens such as U+2028 or U+0085 are in real vocabularies.
    words = tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))
    ids: dict[str, int] = {}
    for index, token in enumerate(words):
        if not token:
            raise BadInput(f"The vocabulary {path} has an empty line {index + 1}: remove it.")
        if token in ids:
            raise BadInput(
                f"The vocabulary {path} has {token!r} on line {ids[token] + 1} and again on line "
                f"{index + 1}: each token may occur once."
            )
        ids[token] = index
    return words


def _has_capital(token: str) -> bool:
    in_brackets = token.startswith("[") and token.endswith("]")
    return token != token.lower() and not in_brackets
