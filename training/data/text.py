"""Turns the tokens of texts into numbers, in a way that an ONNX graph can repeat.

Words are separated by spaces, and only A … Z become lower case: that is all that the ONNX operators
StringSplit and StringNormalizer do (in the locale "C", which is always available). So that "good,"
and "good" count as the same word, each spelling with punctuation is a key of its own with the
number of the bare word.

Words may also be split at every character that is not a letter, digit or underscore, so that
"text-based" is two tokens. Or tokens may be runs of characters, with A … Z in lower case: of one to
three characters for languages without spaces, or of three to five for parts of words. The graph
then needs onnxruntime's own Tokenizer. Or a `tokenizer.json` of Hugging Face's tokenizers makes the
tokens, before the graph in the service too; a token is then named by its number in that file.
"""

import functools
import itertools
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.contract.inputs.spec import TokenizerSpec
from service.contract.inputs.tokens import TokenizerUnusable
from service.contract.inputs.tokens import Tokens as Tokenizer
from training.faults import WrongUse, absent

TOKENS = ("words", "split-words", "characters", "subwords")
TOKENIZER_SUFFIX = ".json"
"""Of the files that may stand in place of a name of TOKENS."""
TOKENIZER_FILE = "tokenizer.json"
"""Its name in a published folder."""
TOKENIZER_INPUTS: dict[str, Literal["ids", "attention_mask"]] = {
    "input_ids": "ids", "attention_mask": "attention_mask",
}  # fmt: skip
"""The inputs of a graph whose texts become tokens outside of it."""
TEXTS_AT_ONCE = 256
RUNS: dict[str, tuple[int, int]] = {"characters": (1, 3), "subwords": (3, 5)}
"""The shortest and the longest run of characters that is a token."""
PART = r"[\pL\pN_]+"
"""A token of split-words, as the graph's regular expressions (RE2) write it; \\w+ in Python."""
MAX_WORDS = 50_000
MAX_RUNS = 30_000
"""The most tokens in a vocabulary: of words (MAX_WORDS), and of character runs (MAX_RUNS)."""
MANY_TEXTS = 1_000  # with at least this many texts, a token must occur in two
_PART = re.compile(r"\w+")
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_AROUND = string.punctuation + "“”‘’«»…–—¿¡\t\r\n"


def words(text: str) -> list[str]:
    """Split a text into words, as the exported graph does."""
    return [word for word in text.translate(_LOWER).split(" ") if word]


def parts(text: str) -> list[str]:
    """Split a text at each character that is not a letter, digit or underscore, as the exported
    graph does.
    """
    return _PART.findall(text.translate(_LOWER))


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


def split(texts: Iterable[str], tokens: str) -> Iterator[list[str]]:
    """Yield the tokens of each text. tokens: one of TOKENS, or the path of a tokenizer's file.

    Raises WrongUse when the file cannot be used.
    """
    if tokens == "words":
        yield from map(words, texts)
    elif tokens == "split-words":
        yield from map(parts, texts)
    elif tokens in RUNS:
        yield from (runs(text, *RUNS[tokens]) for text in texts)
    else:
        apply, waiting = tokenizer(tokens), iter(texts)
        while batch := list(itertools.islice(waiting, TEXTS_AT_ONCE)):
            found = apply(np.array(batch, dtype=object))
            ids, there = (found[name] for name in TOKENIZER_INPUTS)
            for row, mask in zip(ids, there, strict=True):
                yield [str(number) for number in row[mask > 0]]


@functools.lru_cache(maxsize=4)
def tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a file, as the service applies it. Raises WrongUse."""
    file = Path(path)
    if not file.is_file():
        raise WrongUse(f"--tokens {path}: {absent(file)}")
    spec = TokenizerSpec(file=file.name, inputs=dict(TOKENIZER_INPUTS))
    try:
        return Tokenizer(file.parent, spec, dict.fromkeys(TOKENIZER_INPUTS, "int64"))
    except TokenizerUnusable as error:
        raise WrongUse(f"--tokens {path}: {error}") from error


@dataclass(frozen=True)
class Vocabulary:
    """The known tokens of texts.

    keys: maps each spelling of a token to its number, 1 … size. Unknown tokens get the number 0 and
    are ignored.
    """

    keys: dict[str, int]
    size: int
    tokens: str = "words"
    """One of TOKENS, or the path of a tokenizer's file."""
    idf: NDArray[np.float32] | None = None
    """[size] log((1 + texts) / (1 + texts with the token)) + 1, over the training texts."""

    @classmethod
    def learnt(
        cls,
        texts: Iterable[str],
        *,
        tokens: str = "words",
        max_words: int | None = None,
        with_rare: bool = False,
    ) -> "Vocabulary":
        """Build the vocabulary: the max_words tokens found in the most training texts.

        with_rare: whether words of a single text count, however many texts there are: a rare class
        has few others. They count only beside words that are in two texts.
        """
        if max_words is None:
            max_words = MAX_RUNS if tokens in RUNS else MAX_WORDS
        spelling = bare if tokens == "words" else str
        seen: Counter[str] = Counter()
        spelt: dict[str, set[str]] = {}
        count = 0
        for each in split(texts, tokens):
            count += 1
            found = set(each)
            seen.update({spelling(word) for word in found})
            for word in found:
                spelt.setdefault(spelling(word), {spelling(word)}).add(word)
        rare = with_rare and tokens not in RUNS and max(seen.values(), default=0) > 1
        fewest = 1 if rare or count < MANY_TEXTS else 2
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

    @property
    def tokenizer(self) -> Path | None:
        """The file that makes the tokens, where they are made outside of the graph."""
        return None if self.tokens in TOKENS else Path(self.tokens)

    def fed(self, texts: NDArray[np.object_]) -> Any:
        """What the exported graph is given: the texts [n], or tensors [n, tokens] by input name."""
        return texts if self.tokenizer is None else tokenizer(self.tokens)(texts)

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
        keys = vocabulary.keys
        found = [
            [number for word in each if (number := keys.get(word))]
            for each in split(texts, vocabulary.tokens)
        ]
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
