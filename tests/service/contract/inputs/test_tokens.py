"""Texts become the tensors that a transformer takes, as its `tokenizer.json` says."""

import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from service.contract.inputs.spec import TokenizerSpec
from service.contract.inputs.tokens import DEFAULT_LENGTH, TokenizerUnusable, Tokens

WORDS = ("[PAD]", "[CLS]", "[UNK]", "lynx", "stone")
INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask"}
DTYPES = {"input_ids": "int64", "attention_mask": "int32"}


def written(folder, *, words=WORDS, unknown="[UNK]", begins=True, **padding):
    known = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", known["[CLS]"])]
        )
    if padding:
        tokenizer.enable_padding(**padding)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def opened(folder, **limits):
    spec = TokenizerSpec(file="tokenizer.json", inputs=INPUTS, **limits)
    return Tokens(folder, spec, DTYPES)


def texts(*found):
    return np.array([[text] for text in found], object)


def test_a_batch_is_padded_to_its_longest_text(tmp_path):
    found = opened(written(tmp_path))(texts("lynx", "lynx stone moss"))
    assert found["input_ids"].tolist() == [[1, 3, 0, 0], [1, 3, 4, 2]]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert {name: str(each.dtype) for name, each in found.items()} == DTYPES


def test_a_text_is_cut_to_the_length_that_is_stated_or_to_the_default(tmp_path):
    long = texts("lynx " * 2 * DEFAULT_LENGTH)
    written(tmp_path)
    assert opened(tmp_path, max_length=3)(long)["input_ids"].tolist() == [[1, 3, 3]]
    assert opened(tmp_path)(long)["input_ids"].shape == (1, DEFAULT_LENGTH)


def test_the_truncation_of_the_file_is_kept(tmp_path):
    tokenizer = Tokenizer.from_file(str(written(tmp_path) / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert opened(tmp_path)(texts("lynx stone"))["input_ids"].tolist() == [[1, 3]]


@pytest.mark.parametrize(
    ("stated", "limits"),
    [
        ("left", {}),
        ("left", {"max_length": 2}),
        ("right", {"truncation_side": "left"}),
        ("right", {"truncation_side": "left", "max_length": 2}),
    ],
)
def test_a_text_is_cut_off_at_the_side_that_is_stated(tmp_path, stated, limits):
    """A stated length cut off the end, whatever the file said."""
    tokenizer = Tokenizer.from_file(str(written(tmp_path) / "tokenizer.json"))
    tokenizer.enable_truncation(max_length=2, direction=stated)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = opened(tmp_path, **limits)(texts("lynx lynx stone"))
    assert found["input_ids"].tolist() == [[1, 4]]


def test_the_padding_of_the_file_is_kept(tmp_path):
    written(tmp_path, pad_id=4, pad_token="stone")
    assert opened(tmp_path)(texts("lynx", ""))["input_ids"].tolist() == [[1, 3], [1, 4]]


def test_a_stated_padding_token_wins_over_that_of_the_file(tmp_path):
    written(tmp_path, pad_id=4, pad_token="stone")
    found = opened(tmp_path, pad_id=3)(texts("lynx", ""))
    assert found["input_ids"].tolist() == [[1, 3], [1, 3]]
    assert found["attention_mask"].tolist() == [[1, 1], [1, 0]]


def test_without_a_known_padding_token_token_0_pads(tmp_path):
    written(tmp_path, words=("lynx", "[CLS]", "[UNK]"))
    assert opened(tmp_path)(texts("lynx", ""))["input_ids"].tolist() == [[1, 0], [1, 0]]


def test_a_batch_of_empty_texts_has_one_token_of_padding(tmp_path):
    found = opened(written(tmp_path, begins=False, pad_id=4, pad_token="stone"))(texts("", ""))
    assert found["input_ids"].tolist() == [[4], [4]]
    assert found["attention_mask"].tolist() == [[0], [0]]


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(TokenizerUnusable, match=r"tokenizer\.json cannot be read as a tokenizer"):
        opened(tmp_path)


def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenizerUnusable, match="tokenizers"):
        opened(tmp_path)
