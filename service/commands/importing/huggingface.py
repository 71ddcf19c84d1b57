"""Reads a folder that Hugging Face's Optimum wrote: model.onnx, config.json, and the files for
texts or images.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.commands.importing.names import json_of, names_of_json, text_of
from service.commands.importing.onnx_file import GraphInput
from service.commands.importing.refusal import ImportRefused
from service.contract.inputs.spec import TokenizerSpec

MODEL_FILES = ("model.onnx", "onnx/model.onnx", "model_quantized.onnx", "onnx/model_quantized.onnx")
TOKENIZER_FILE = "tokenizer.json"
_PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of the filters by Pillow's numbers, which preprocessor_config.json contains."""
_MAX_LENGTH = 1_000_000
"""tokenizer_config.json writes 1e30 for "no limit"."""


@dataclass(frozen=True)
class Folder:
    """The content of a folder.

    path: the path of model.onnx. names: the class names; None where config.json has none.
    """

    home: Path
    path: Path
    names: list[str] | None

    def tokenizer(self, inputs: Sequence[GraphInput]) -> TokenizerSpec | None:
        """How texts become the graph's inputs; None for a folder without a tokenizer.

        Raises ImportRefused for inputs that no tokenizer feeds.
        """
        if not (self.home / TOKENIZER_FILE).is_file():
            return None
        unknown = [each.name for each in inputs if each.name not in _PARTS]
        if unknown:
            raise ImportRefused(
                f"{self.home}: a tokenizer feeds {', '.join(_PARTS)}; the graph also has "
                f"'{unknown[0]}': export the model without it"
            )
        return TokenizerSpec.model_validate(
            {
                "file": TOKENIZER_FILE,
                "max_length": self._max_length(),
                "inputs": {each.name: _PARTS[each.name] for each in inputs},
            }
        )

    def _max_length(self) -> int | None:
        stated = _read(self.home / "tokenizer_config.json").get("model_max_length")
        if not isinstance(stated, (int, float)) or stated > _MAX_LENGTH:
            stated = _read(self.home / "config.json").get("max_position_embeddings")
        return int(stated) if isinstance(stated, (int, float)) and stated >= 1 else None


def read(home: Path, flags: argparse.Namespace) -> Folder:
    """Read a folder, and take image flags that were not given from preprocessor_config.json.

    Raises ImportRefused.
    """
    found = [home / name for name in MODEL_FILES if (home / name).is_file()]
    if not found:
        raise ImportRefused(
            f"{home} is a folder without {MODEL_FILES[0]}: export it with "
            "`optimum-cli export onnx`, or give the file itself"
        )
    preprocessor = _read(home / "preprocessor_config.json")
    if preprocessor:
        for name, value in image_flags(preprocessor).items():
            if getattr(flags, name) in {None, False}:
                setattr(flags, name, value)
    return Folder(home, found[0], names_of_json(_read(home / "config.json").get("id2label")))


def image_flags(config: dict[str, Any]) -> dict[str, Any]:
    """The image flags of `import` that are equivalent to a preprocessor_config.json."""
    found: dict[str, Any] = {"image": True}
    size = _sides(config.get("size")) if config.get("do_resize", True) else None
    crop = _sides(config.get("crop_size")) if config.get("do_center_crop") else None
    edge = _edge(config)
    if crop is not None:
        found["size"] = _words(crop)
        found["resize"] = str(edge) if edge is not None else _words(size or crop)
    elif size is not None:
        found["size"], found["resize"] = _words(size), "stretch"
    elif edge is not None:
        found["size"], found["resize"] = _words([edge, edge]), "crop"
        if config.get("crop_pct"):
            found["resize"] = str(int(edge / config["crop_pct"]))
    if isinstance(config.get("resample"), int) and 0 <= config["resample"] < len(_RESAMPLE):
        found["resample"] = _RESAMPLE[config["resample"]]
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    found["scale"] = "0..1" if abs(factor * 255 - 1) < 1e-6 else repr(float(factor))
    if config.get("do_normalize", True):
        for name, flag in (("image_mean", "mean"), ("image_std", "std")):
            if isinstance(config.get(name), list):
                found[flag] = _words(config[name])
    if config.get("do_flip_channel_order"):
        found["color"] = "BGR"
    return found


def _edge(config: dict[str, Any]) -> int | None:
    """The length that the shorter side is scaled to; None where the config names no such length."""
    size = config.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge")
    elif config.get("do_center_crop") is None:
        return None
    return size if isinstance(size, int) and config.get("do_resize", True) else None


def _sides(size: Any) -> list[int] | None:
    """[height, width] of a size; None where it names one side only."""
    if isinstance(size, dict):
        sides = [size.get("height"), size.get("width")]
        found = [side for side in sides if isinstance(side, int)]
        return found if len(found) == 2 else None
    return [size, size] if isinstance(size, int) else None


def _words(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))


def _read(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty where there is none."""
    if not path.is_file():
        return {}
    found = json_of(text_of(path, "the folder's"), path, "the folder's")
    if not isinstance(found, dict):
        raise ImportRefused(f"{path}: expected a JSON object; got {json.dumps(found)[:60]}")
    return found
