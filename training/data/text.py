"""Turns tokens of texts into numbers, by a vocabulary that an ONNX graph can also apply.

Words are separated by spaces, with A … Z in lower case: StringSplit and StringNormalizer (in the
locale "C", which is always available) do no more. A word with punctuation around it is therefore a
separate key that has the number of the bare word: "good," and "good" are the same word, in the
graph as well.

Tokens may instead be runs of one to three characters, with A … Z in lower case, for languages
without spaces. The graph then needs onnxruntime's own Tokenizer.
"""

import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Tokens: TypeAlias = Literal["words", "characters"]
TOKENS: tuple[Tokens, ...] = ("words", "characters")
LONGEST_RUN = 3
"""Of characters, in one token."""
MAX_WORDS = 50_000
MANY_TEXTS = 1_000  # from here on a word must stand in two texts to count
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_AROUND = string.punctuation + "“”‘’«»…–—¿¡\t\r\n"


def words(text: str) -> list[str]:
    """The words of a text, as the exported graph sees them."""
    return [word for word in text.translate(_LOWER).split(" ") if word]


def runs(text: str) -> list[str]:
    """All runs of 1 to LONGEST_RUN characters of a text, as the exported graph sees them."""
    lower = text.translate(_LOWER)
    return [
        lower[start : start + length]
        for length in range(1, LONGEST_RUN + 1)
        for start in range(len(lower) - length + 1)
    ]


def bare(word: str) -> str:
    """A word without the punctuation around it; the word itself if it is all punctuation."""
    return word.strip(_AROUND) or word


def tokens_of(tokens: Tokens) -> Callable[[str], list[str]]:
    """The function that splits a text into such tokens."""
    return words if tokens == "words" else runs


@dataclass(frozen=True)
class Vocabulary:
    """keys: each spelling of a token -> its number, 1 … size. Other tokens are 0 and ignored."""

    keys: dict[str, int]
    size: int
    tokens: Tokens = "words"

    @classmethod
    def learnt(
        cls, texts: Iterable[str], *, tokens: Tokens = "words", max_words: int = MAX_WORDS
    ) -> "Vocabulary":
        """From training texts: the max_words tokens that are in the most texts."""
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
        return cls(keys, min(len(ranked), max_words), tokens)

    def encode(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Word numbers [len(texts), longest], padded with 0; at least one column."""
        return Encoded.of(texts, self).padded(np.arange(len(texts))).astype(np.int64)


@dataclass(frozen=True)
class Encoded:
    """Many texts as word numbers, end to end.

    Those of text i are numbers[starts[i] : starts[i + 1]].
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
