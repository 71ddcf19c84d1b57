"""What a graph says of its inputs and outputs, held against what its model.json says."""

from collections.abc import Sequence
from typing import Protocol

from service.contract.bundle import Bundle


class Tensor(Protocol):
    """An input or an output as onnxruntime describes it."""

    name: str
    type: str
    shape: Sequence[int | str | None]


def wrong_input(own: Sequence[Tensor], bundle: Bundle) -> str | None:
    """What is wrong with a graph's own inputs; None when they are as model.json says."""
    said, names = bundle.input, [item.name for item in own]
    if names != [said.name]:
        return f"the graph's inputs are {names}; model.json says ['{said.name}']"
    if own[0].type != _ORT_TYPES[said.dtype]:
        return f"input '{said.name}' is {own[0].type}; model.json says {said.dtype}"
    return None


def wrong_columns(logits: Tensor, bundle: Bundle) -> str | None:
    """The same for the number of classes, where the graph itself tells it; where it does not, warm_up sees it."""
    columns, classes = logits.shape[-1] if logits.shape else None, len(bundle.class_names)
    if isinstance(columns, int) and columns != classes:
        return f"the graph has {columns} classes; class_names has {classes}"
    return None


_ORT_TYPES = {
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "string": "tensor(string)",
    "bool": "tensor(bool)",
    **{name: f"tensor({name})" for name in ("uint8", "int8", "int16", "int32", "int64")},
}
