"""Puts the vocabulary in front of an exported network: strings [B] in, with standard operators only."""

import onnx
from onnx import TensorProto, helper

from training.data.text import Vocabulary

ML_DOMAIN, ML_OPSET = "ai.onnx.ml", 4
LOCALE = "C"  # the default, en_US, is missing in most containers, and then the graph does not load


def take_strings(model: onnx.ModelProto, vocabulary: Vocabulary, *, name: str) -> None:
    """Replace the graph's only input, word numbers [B, words], by texts: a string tensor [B] called `name`.

    StringNormalizer lowers A … Z, StringSplit parts at spaces and pads with empty strings, LabelEncoder gives each
    word its number; what is no word of the vocabulary becomes 0, which the network leaves out.
    """
    graph = model.graph
    old = graph.input[0].name
    numbers = f"{name}/numbers"
    for node in graph.node:
        for position, given in enumerate(node.input):
            if given == old:
                node.input[position] = numbers
    front = [
        helper.make_node(
            "StringNormalizer", [name], [f"{name}/lower"], case_change_action="LOWER", locale=LOCALE
        ),
        helper.make_node("StringSplit", [f"{name}/lower"], [f"{name}/words", f"{name}/lengths"]),
        helper.make_node(
            "LabelEncoder",
            [f"{name}/words"],
            [numbers],
            domain=ML_DOMAIN,
            keys_strings=list(vocabulary.keys),
            values_int64s=list(vocabulary.keys.values()),
            default_int64=0,
        ),
    ]
    for position, node in enumerate(front):
        graph.node.insert(position, node)
    graph.input[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.STRING, ["batch"]))
    model.opset_import.append(helper.make_opsetid(ML_DOMAIN, ML_OPSET))
