"""`import` of a folder of texts: what its files state reaches the tokenizer of the service."""

import json

import onnx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "</s>"]
END = WORDS.index("</s>")


def decoder(folder, config):
    """Write a classifier that scores the token before the first END, as decoders do."""
    graph = onnx.parser.parse_model(f"""
    <ir_version: 9, opset_import: ["" : 20]>
    decoder (int64[N, T] input_ids) => (float[N, 2] logits)
    <int64 end = {{{END}}}, int64 one = {{1}}, int64[1] tokens = {{1}}, int64[1] last = {{2}},
     float[6, 2] table = {{0, 1, 2, -1, 3, -2, -1, 2, 0.5, 0.25, 5, 5}}>
    {{
        at_end = Equal(input_ids, end)
        kept = Not(at_end)
        counted = Cast<to=7>(kept)
        total = ReduceSum<keepdims=1>(counted, tokens)
        place = Sub(total, one)
        ids = GatherElements<axis=1>(input_ids, place)
        found = Gather(table, ids)
        logits = Squeeze(found, tokens)
    }}""")
    onnx.save(graph, str(folder / "model.onnx"))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"id2label": {"0": "praise", "1": "blame"}, **config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_decoder_is_padded_with_the_token_that_its_graph_ends_at(import_file, tmp_path):
    """The rows of a batch were padded with another token, so that each had to run alone."""
    home = tmp_path / "export"
    home.mkdir()
    status, bundle, err = import_file(decoder(home, {"pad_token_id": END}))
    assert status == 0, err
    assert bundle.input.tokenizer.pad_id == END
    assert bundle.max_batch_rows is None


@pytest.mark.parametrize("stated", [None, -1, "5", [5], True])
def test_a_padding_token_that_is_no_id_is_left_to_the_tokenizer(import_file, tmp_path, stated):
    home = tmp_path / "export"
    home.mkdir()
    status, bundle, err = import_file(decoder(home, {"pad_token_id": stated}))
    assert status == 0, err
    assert bundle.input.tokenizer.pad_id is None
    assert bundle.max_batch_rows == 1
