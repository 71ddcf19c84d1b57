"""Writes a folder as Hugging Face's Optimum does, with a tiny classifier of reviews in it.

It stands in for `optimum-cli export onnx --model … reviews/`, which needs a download.
"""

import json
import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

CLASSES = ["negative", "neutral", "positive"]
COUNTS = [300, 700, 9000]  # reviews of each class in the training data
WORDS = {  # what a word adds to the logit of each class
    "[PAD]": (0, 0, 0),
    "[UNK]": (0, 0, 0),
    "broken": (3, 0, -1),
    "awful": (4, 0, -2),
    "okay": (0, 3, 0),
    "good": (-1, 0, 2),
    "great": (-2, 0, 3),
}

folder = Path("reviews")
folder.mkdir(exist_ok=True)

words = {word: number for number, word in enumerate(WORDS)}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))  # noqa: S106 - a word, no secret
tokenizer.normalizer = normalizers.Lowercase()
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer.save(str(folder / "tokenizer.json"))
config = {"id2label": dict(enumerate(CLASSES)), "max_position_embeddings": 128}
(folder / "config.json").write_text(json.dumps(config))

mix = [math.log(n / sum(COUNTS)) for n in COUNTS]  # a model learns the mix of its training data
weights = {
    "words": np.array(list(WORDS.values()), np.float32),
    "mix": np.array(mix, np.float32),
    "axis": np.array([1], np.int64),
    "last": np.array([2], np.int64),
}
graph = helper.make_graph(
    [
        helper.make_node("Gather", ["words", "input_ids"], ["scores"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["scores", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "mix"], ["logits"]),
    ],
    "reviews",
    [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
    [numpy_helper.from_array(values, name) for name, values in weights.items()],
)
onnx.save(
    helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
    folder / "model.onnx",
)
Path("reviews-counts.json").write_text(json.dumps(dict(zip(CLASSES, COUNTS, strict=True))))
print("wrote reviews/ and reviews-counts.json")
