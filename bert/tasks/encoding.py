"""Examples -> rows of token ids with their targets, one row a window of one example.

    text         [CLS] text [SEP] (pair [SEP]), the longer of a pair cut first
    words        [CLS] words [SEP]; a long sentence becomes several windows that share stride_tokens
                 tokens, and each word is learned and predicted in the one where it has most context
    question     [CLS] question [SEP] window of the context [SEP]

A row's target is what its kind of head learns (see heads.py); -100 is ignored.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bert.architecture import IGNORE_INDEX
from bert.tasks.config import TaskConfig
from bert.tasks.formats.examples import Example, QuestionExample, TextExample, TokenExample
from bert.vocabulary import Vocabulary
from distributed.errors import BadInput

CUT = "examples longer than task.max_seq_len cut to it"
WINDOWED = "sentences longer than task.max_seq_len read in windows"
LONG_QUESTION = "questions cut to half of task.max_seq_len"
UNREADABLE = "words without a readable character read as [UNK]"

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One input of the model: T tokens.

    `target`: a class () or start and end (2,), int64; labels of the tokens (T,), int64; a score ()
    or the classes that apply (C,), float32.
    """

    input_ids: Int64Array
    token_type_ids: Int64Array
    target: npt.NDArray[Any]
    loss_terms: int  # how many terms of the mean loss it has
    example: int  # its place in the split
    words: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))
    # tokens: [W, 2], token and place among the example's words, of the words that it predicts
    spans: Int64Array = field(default_factory=lambda: np.empty((0, 2), np.int64))
    # questions: [T, 2], characters of the context that a token covers; -1 where it may not answer


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of a split and the examples that they came from; `reports` counts what was cut."""

    examples: Sequence[Example]
    rows: Sequence[Row]
    reports: Counter[str]


def encode_split(
    examples: Sequence[Example],
    *,
    task: TaskConfig,
    labels: Sequence[str],
    vocabulary: Vocabulary,
    training: bool,
) -> EncodedSplit:
    """Encode every example. `training` leaves out windows that would only repeat `no answer`."""
    encoder = _Encoder(task, labels, vocabulary)
    rows: list[Row] = []
    for index, example in enumerate(examples):
        if isinstance(example, TextExample):
            rows.append(encoder.text(index, example))
        elif isinstance(example, TokenExample):
            rows.extend(encoder.words(index, example))
        else:
            rows.extend(encoder.question(index, example, training=training))
    return EncodedSplit(examples, rows, encoder.reports)


class _Encoder:
    """Encodes one example at a time and counts what had to be changed."""

    def __init__(self, task: TaskConfig, labels: Sequence[str], vocabulary: Vocabulary) -> None:
        self.reports: Counter[str] = Counter()
        self._task = task
        self._index = {label: i for i, label in enumerate(labels)}
        self._vocabulary = vocabulary

    def text(self, index: int, example: TextExample) -> Row:
        first = self._ids(example.text)
        second = self._ids(example.text_pair) if example.text_pair is not None else None
        room = self._task.max_seq_len - (2 if second is None else 3)
        if len(first) + len(second or []) > room:
            self.reports[CUT] += 1
            first, second = _cut_pair(first, second, room)
        vocabulary = self._vocabulary
        ids = [vocabulary.cls_id, *first, vocabulary.sep_id]
        types = [0] * len(ids)
        if second is not None:
            ids += [*second, vocabulary.sep_id]
            types += [1] * (len(second) + 1)
        target = self._text_target(example)
        return Row(_int64(ids), _int64(types), target, max(1, target.size), index)

    def words(self, index: int, example: TokenExample) -> list[Row]:
        """Windows over the sentence's sub-tokens, cut between words."""
        pieces = self._word_pieces(example)
        room = self._task.max_seq_len - 2
        lengths = [len(p) for p in pieces]
        windows = _word_windows(lengths, room=room, stride=self._task.stride_tokens)
        if len(windows) > 1:
            self.reports[WINDOWED] += 1
        owners = _assign_words(windows, lengths)
        rows = []
        for number, (start, end) in enumerate(windows):
            ids = [self._vocabulary.cls_id]
            targets = [IGNORE_INDEX]
            predicted = []
            for word in range(start, end):
                if owners[word] == number:
                    predicted.append((len(ids), word))
                    targets.append(self._index[example.tags[word]])
                else:
                    targets.append(IGNORE_INDEX)
                targets += [IGNORE_INDEX] * (len(pieces[word]) - 1)
                ids += pieces[word]
            ids.append(self._vocabulary.sep_id)
            targets.append(IGNORE_INDEX)
            words = _int64(predicted).reshape(-1, 2)
            types = np.zeros(len(ids), np.int64)
            rows.append(Row(_int64(ids), types, _int64(targets), len(words), index, words=words))
        return rows

    def question(self, index: int, example: QuestionExample, *, training: bool) -> list[Row]:
        """Windows over the context; the target is the first answer's span, or [CLS] outside it."""
        vocabulary, limit = self._vocabulary, self._task.max_seq_len
        question = self._ids(example.question)
        if len(question) > limit // 2:
            self.reports[LONG_QUESTION] += 1
            question = question[: limit // 2]
        encoding = vocabulary.tokenizer.encode(example.context, add_special_tokens=False)
        context, offsets = encoding.ids, encoding.offsets
        if not context:
            raise BadInput(f"{example.place} has a context without a readable character")
        room = limit - len(question) - 3
        step = room - min(self._task.stride_tokens, room // 2)  # else a row a token, at worst
        answer = _answer_tokens(example, offsets)
        rows = []
        for start in range(0, len(context), step):
            end = min(start + room, len(context))
            ids = [vocabulary.cls_id, *question, vocabulary.sep_id]
            shift = len(ids) - start
            ids += [*context[start:end], vocabulary.sep_id]
            types = [0] * (start + shift) + [1] * (end - start + 1)
            spans = np.full((len(ids), 2), -1, np.int64)
            spans[start + shift : end + shift] = offsets[start:end]
            target = [0, 0]
            if answer is not None and start <= answer[0] and answer[1] < end:
                target = [answer[0] + shift, answer[1] + shift]
            rows.append(Row(_int64(ids), _int64(types), _int64(target), 1, index, spans=spans))
            if end == len(context):
                break
        if training and len(rows) > 1:
            answering = [row for row in rows if row.target.any()]
            rows = answering or rows[:1]
        return rows

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._vocabulary.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _word_pieces(self, example: TokenExample) -> list[list[int]]:
        encoding = self._vocabulary.tokenizer.encode(
            list(example.words), is_pretokenized=True, add_special_tokens=False
        )
        pieces: list[list[int]] = [[] for _ in example.words]
        for token, word in zip(encoding.ids, encoding.word_ids, strict=True):
            if word is not None:
                pieces[word].append(token)
        room = self._task.max_seq_len - 2
        for word, piece in enumerate(pieces):
            if not piece:
                self.reports[UNREADABLE] += 1
                piece.append(self._vocabulary.unk_id)
            pieces[word] = piece[:room]
        return pieces

    def _text_target(self, example: TextExample) -> npt.NDArray[Any]:
        label = example.label
        if isinstance(label, float):
            return np.array(label, np.float32)
        if isinstance(label, str):
            return np.array(self._index[label], np.int64)
        applies = np.zeros(len(self._index), np.float32)
        applies[[self._index[name] for name in label]] = 1
        return applies


def _cut_pair(
    first: list[int], second: list[int] | None, room: int
) -> tuple[list[int], list[int] | None]:
    """Cut the longer until both fit, as BERT does."""
    if second is None:
        return first[:room], None
    short = min(len(first), len(second), room // 2)
    if len(first) <= len(second):
        return first[:short], second[: room - short]
    return first[: room - short], second[:short]


def _word_windows(lengths: Sequence[int], *, room: int, stride: int) -> list[tuple[int, int]]:
    """Words [start, end) of each window: at most `room` tokens; neighbours share up to `stride`."""
    windows = []
    start = 0
    while True:
        end, tokens = start, 0
        while end < len(lengths) and tokens + lengths[end] <= room:
            tokens += lengths[end]
            end += 1
        windows.append((start, end))
        if end == len(lengths):
            return windows
        shared, back = 0, end
        while back - 1 > start and shared + lengths[back - 1] <= min(stride, room // 2):
            back -= 1
            shared += lengths[back]
        start = back


def _assign_words(windows: Sequence[tuple[int, int]], lengths: Sequence[int]) -> list[int]:
    """For each word the window in which its nearer edge is farthest; the earlier on a tie."""
    before = np.concatenate([[0], np.cumsum(lengths)])  # tokens before each word
    owners, best = [0] * len(lengths), [-1] * len(lengths)
    for number, (start, end) in enumerate(windows):
        for word in range(start, end):
            # The ends of the sentence are no edges: there is no more context to be had.
            left = before[word] - before[start] if start > 0 else before[-1]
            right = before[end] - before[word + 1] if end < len(lengths) else before[-1]
            context = int(min(left, right))
            if context > best[word]:
                owners[word], best[word] = number, context
    return owners


def _answer_tokens(
    example: QuestionExample, offsets: Sequence[tuple[int, int]]
) -> tuple[int, int] | None:
    """First and last token of the first answer; None where no token covers it."""
    start = example.answer_starts[0]
    end = start + len(example.answers[0])
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    return (inside[0], inside[-1]) if inside else None


def _int64(values: Sequence[Any]) -> Int64Array:
    return np.array(values, dtype=np.int64)
