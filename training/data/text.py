"""Turns the tokens of texts into numbers, in a way that an ONNX graph can repeat.

Words are separated by spaces, and only A … Z become lower case: that is all that the ONNX operators
StringSplit and StringNormalizer do (in the locale "C", which is always available). So that "good,"
and "good" count as the same word, each spelling with punctuation is a key of its own with the
number of the bare word.

Instead of words, tokens may be runs of characters, with A … Z in lower case: of one to three
characters for languages without spaces, or of three to five for parts of words. The graph then
needs onnxruntime's own Tokenizer.
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
"""The most tokens in a vocabulary: of words (MAX_WORDS), and of character runs (MAX_RUNS)."""
MANY_TEXTS = 1_000  # with at least this many texts, a word must occur in two
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_AROUND = string.punctuation + "“”‘’«»…–—¿¡\t\r\n"


def words(text: str) -> list[str]:
    """Split a text into words, as the exported graph does."""
    return [word for word in text.translate(_LOWER).split(" ") if word]


def runs(text: str, shortest: int = 1, longest: int = 3) -> list[str]:
    """Return all runs of `shortest` to `longest` characters, as the exported graph forms them."""
    lower = text.translate(_LOWER)
    return [
        lower[start : start + length]
        for length in range(shortest, longest + 1)
        for start in range(len(lower) - length + 1)
    ]


def bare(word: str) -> str:
    """Strip the punctuation around a word; a word that is all punctuation stays as it is."""
    return word.strip(_AROUND) or word


def tokens_of(tokens: Tokens) -> Callable[[str], list[str]]:
    """Return the function that splits a text into tokens of this kind."""
    if tokens == "words":
        return words
    shortest, longest = RUNS[tokens]
    return lambda text: runs(text, shortest, longest)


@dataclass(frozen=True)
class Vocabulary:
    """The known tokens of texts.

    keys: maps each spelling of a token to its number, 1 … size. Unknown tokens get the number 0 and
    are ignored.
    """

    keys: dict[str, int]
    size: int
    tokens: Tokens = "words"
    idf: NDArray[np.float32] | None = None
    """[size] log((1 + texts) / (1 + texts with the token)) + 1, over the training texts."""

    @classmethod
    def learnt(
        cls, texts: Iterable[str], *, tokens: Tokens = "words", max_words: int | None = None
    ) -> "Vocabulary":
        """Build the vocabulary: the max_words tokens found in the most training texts."""
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
        """Return token numbers [len(texts), longest text], padded with 0; at least one column."""
        return Encoded.of(texts, self).padded(np.arange(len(texts))).astype(np.int64)


@dataclass(frozen=True)
class Encoded:
    """The token numbers of many texts in one array, one text after the other.

    Text i has numbers[starts[i] : starts[i + 1]].
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
        """Return the texts `rows` as [len(rows), longest], padded with 0; at least one column."""
        starts = self.starts[rows][:, None]
        lengths = self.starts[rows + 1][:, None] - starts
        columns = np.arange(max(1, int(lengths.max(initial=1))))
        if not len(self.numbers):
            return np.zeros((len(rows), len(columns)), np.int32)
        # positions beyond a text belong to the next one, or to none: they are set to 0
        table = self.numbers.take(starts + columns, mode="clip")
        table *= columns < lengths
        return table
