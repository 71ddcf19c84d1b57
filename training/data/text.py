"""Turns tokens of texts into numbers, by a vocabulary that an ONNX graph can also apply.

Words are separated by spaces, with A … Z in lower case: StringSplit and StringNormalizer (in the
locale "C", which is always available) do no more. A word with punctuation around it is therefore a
separate key that has the number of the bare word: "good," and "good" are the same word, in the
graph as well.

Tokens may instead be runs of characters, with A … Z in lower case: of one to three, for languages
without spaces, or of three to five, for parts of words. The graph then needs onnxruntime's own
Tokenizer.
"""

import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Tokens: TypeAlias = Literal["words", "characters", "subwords"]
TOKENS: tuple[Tokens, ...] = ("words", "characters", "subwords")
RUNS: dict[str, tuple[int, int]] = {"characters": (1, 3), "subwords": (3, 5)}
"""The shortest and the longest run of characters that is a token."""
MAX_WORDS = 50_000
MAX_RUNS = 30_000
"""The most tokens that are learnt: of words, and of runs of characters."""
MANY_TEXTS = 1_000  # with at least this many texts, a word must occur in two of them
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_AROUND = string.punctuation + "“”‘’«»…–—¿¡\t\r\n"


def words(text: str) -> list[str]:
    """The words of a text, as the exported graph sees them."""
    return [word for word in text.translate(_LOWER).split(" ") if word]


def runs(text: str, shortest: int = 1, longest: int = 3) -> list[str]:
    """All runs of `shortest` to `longest` characters of a text, as the exported graph sees them."""
    lower = text.translate(_LOWER)
    return [
        lower[start : start + length]
        for length in range(shortest, longest + 1)
        for start in range(len(lower) - length + 1)
    ]


def bare(word: str) -> str:
    """A word without the punctuation around it; the word itself if it is all punctuation."""
    return word.strip(_AROUND) or word


def tokens_of(tokens: Tokens) -> Callable[[str], list[str]]:
    """The function that splits a text into such tokens."""
    if tokens == "words":
        return words
    shortest, longest = RUNS[tokens]
    return lambda text: runs(text, shortest, longest)


@dataclass(frozen=True)
class Vocabulary:
    """keys: each spelling of a token -> its number, 1 … size. Other tokens are 0 and ignored."""

    keys: dict[str, int]
    size: int
    tokens: Tokens = "words"
    idf: NDArray[np.float32] | None = None
    """[size] log((1 + texts) / (1 + texts that have the token)) + 1, of the training texts."""

    @classmethod
    def learnt(
        cls, texts: Iterable[str], *, tokens: Tokens = "words", max_words: int | None = None
    ) -> "Vocabulary":
        """Learn from training texts the max_words tokens that occur in the most texts."""
        if max_words is None:
            max_words = MAX_WORDS if tokens == "words" else MAX_RUNS
        spelling = bare if tokens == "words" else str
        split = tokens_of(tokens)
        seen: Counter[str] = Counter()
        spelt: dict[str, set[str]] = {}
        count = 0
        for text in texts:
            count += 1
            found = set(split(text))
            seen.update({spelling(word) for word in found})
            for word in found:
                spelt.setdefault(spelling(word), {spelling(word)}).add(word)
        fewest = 2 if count >= MANY_TEXTS else 1
        ranked = sorted(
            (word for word, n in seen.items() if n >= fewest), key=lambda word: (-seen[word], word)
        )
        keys = {
            spelt_so: number
            for number, word in enumerate(ranked[:max_words], 1)
            for spelt_so in sorted(spelt[word])
        }
        kept = ranked[:max_words]
        having = np.array([seen[word] for word in kept], np.float64)
        idf = np.log((1 + count) / (1 + having)) + 1
        return cls(keys, len(kept), tokens, idf.astype(np.float32))

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Word numbers [len(texts), longest], padded with 0; at least one column."""
        return Encoded.of(texts, self).padded(np.arange(len(texts))).astype(np.int64)


@dataclass(frozen=True)
class Encoded:
    """Many texts as token numbers, one after another.

    The numbers of text i are numbers[starts[i] : starts[i + 1]].
    """

    numbers: NDArray[np.int32]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str], vocabulary: Vocabulary) -> "Encoded":
        """Encode texts; tokens that are not in the vocabulary are dropped."""
        keys, split = vocabulary.keys, tokens_of(vocabulary.tokens)
        found = [[number for word in split(text) if (number := keys.get(word))] for text in texts]
        starts = np.concatenate([[0], np.cumsum([len(one) for one in found], dtype=np.int64)])
        numbers = np.fromiter(
            (number for one in found for number in one), np.int32, int(starts[-1])
        )
        return cls(numbers, starts.astype(np.int64))

    def padded(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """[len(rows), longest of them], padded with 0; at least one column."""
        starts = self.starts[rows][:, None]
        lengths = self.starts[rows + 1][:, None] - starts
        columns = np.arange(max(1, int(lengths.max(initial=1))))
        if not len(self.numbers):
            return np.zeros((len(rows), len(columns)), np.int32)
        # numbers beyond a text belong to another text, or lie beyond the end: they are set to 0
        table = self.numbers.take(starts + columns, mode="clip")
        table *= columns < lengths
        return table
