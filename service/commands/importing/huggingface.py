"""Reads a folder that Hugging Face's Optimum wrote: model.onnx, config.json, and the files for
texts or images.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.commands.importing.names import json_of, names_of_json, numbers_as_names, text_of
from service.commands.importing.onnx_file import GraphInput
from service.commands.importing.refusal import ImportRefused
from service.contract.inputs.spec import TokenizerSpec

MODEL_FILES = ("model.onnx", "onnx/model.onnx", "model_quantized.onnx", "onnx/model_quantized.onnx")
TOKENIZER_FILE = "tokenizer.json"
_PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
_RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Names of the filters by Pillow's numbers, which preprocessor_config.json contains."""
_PROCESSOR = re.compile(r"(\w+?)(?:FeatureExtractor|ImageProcessor)")
_EDGES = {
    "Bit", "CLIP", "ChineseCLIP", "ConvNext", "Levit", "MobileNetV1", "MobileNetV2", "MobileViT",
    "PoolFormer",
}  # fmt: skip
"""Image processors for which a size of one number is the length of the shorter side."""
_WHOLE_EDGE = 384
"""From this size on, the image processor of ConvNeXt takes the whole image."""
_PROBLEMS = {
    "multi_label_classification": "so the scores of the classes are independent and no posterior: "
    "train and export a classifier for each label, or one whose classes exclude each other",
    "regression": "so the model predicts numbers and not a class, and has no class prior: export a "
    "classifier",
}
"""The values of `problem_type` that cannot be served, with the reason and the way out."""
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
        side = _read(self.home / "tokenizer_config.json").get("truncation_side")
        return TokenizerSpec.model_validate(
            {
                "file": TOKENIZER_FILE,
                "max_length": self._max_length(),
                "truncation_side": side if side in {"left", "right"} else None,
                "pad_id": self._pad_id(),
                "inputs": {each.name: _PARTS[each.name] for each in inputs},
            }
        )

    def _pad_id(self) -> int | None:
        """The token at which the graph of a decoder ends a text: config.json's `pad_token_id`."""
        stated = _read(self.home / "config.json").get("pad_token_id")
        return stated if type(stated) is int and stated >= 0 else None

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
    config = _read(home / "config.json")
    _check_problem(config, home, kind=flags.output_kind)
    labels = config.get("id2label")
    names = names_of_json(numbers_as_names({"id2label": labels}))
    if names is None and labels is not None and flags.class_names is None:
        raise ImportRefused(
            f"{home / 'config.json'}: id2label is {json.dumps(labels)[:60]}; expected an object "
            "from each index (0, 1, 2 …) to its name; correct it there, or give --class-names"
        )
    return Folder(home, found[0], names)


def _check_problem(config: dict[str, Any], home: Path, *, kind: str | None) -> None:
    """Raise ImportRefused for a model whose logits are not log posteriors of one class of several.

    kind: `--output-kind`; where it is given, the caller knows what the output holds.
    """
    reason = _PROBLEMS.get(str(config.get("problem_type")))
    if kind is None and reason is not None:
        raise ImportRefused(
            f"{home / 'config.json'}: problem_type is {config['problem_type']}, {reason}. If each "
            "row has exactly one class nevertheless, give --output-kind logits"
        )


def image_flags(config: dict[str, Any]) -> dict[str, Any]:
    """The image flags of `import` that are equivalent to a preprocessor_config.json.

    Image processors of transformers read the same members differently, so the type in the file
    counts. Raises ImportRefused for a range of pixels that no flag describes.
    """
    processor = _PROCESSOR.match(
        str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    )
    family = processor[1] if processor else None
    found: dict[str, Any] = {"image": True, **_sizes(config, family)}
    if isinstance(config.get("resample"), int) and 0 <= config["resample"] < len(_RESAMPLE):
        found["resample"] = _RESAMPLE[config["resample"]]
    factor = 1.0
    if config.get("do_rescale", True):
        factor = (_numbers(config.get("rescale_factor")) or [1 / 255])[0]
    found["scale"] = "0..1" if abs(factor * 255 - 1) < 1e-6 else repr(float(factor))
    found.update(_normalising(config, family, factor))
    if config.get("do_flip_channel_order"):
        found["color"] = "BGR"
    return found


def _sizes(config: dict[str, Any], family: str | None) -> dict[str, str]:
    """The flags `size` and `resize`; none where the file does not say them."""
    stated = config.get("size") if config.get("do_resize", True) else None
    edge, sides = _edge(stated, config, family), _sides(stated)
    share = _numbers(config.get("crop_pct", 0.9 if family == "PoolFormer" else None))
    pct = share[0] if share and share[0] > 0 else None
    default = 224 if family == "Levit" else None  # a file of an older version leaves it out
    crop = _sides(config.get("crop_size", default)) if config.get("do_center_crop") else None
    if family == "ConvNext" or (family is None and pct and crop is None):
        if edge is None:
            return {}
        resize = "stretch" if edge >= _WHOLE_EDGE else str(int(edge / (pct or 0.875)))
        return {"size": _words([edge, edge]), "resize": resize}
    if crop is None and edge is not None and not isinstance(stated, int):
        return {"size": _words([edge, edge]), "resize": "crop"}
    if crop is None:
        return {} if sides is None else {"size": _words(sides), "resize": "stretch"}
    if family == "Perceiver" and sides is not None:  # cuts out a part, and scales that
        return {"size": _words(sides), "resize": str(min(crop))}
    if family == "PoolFormer" and pct:
        edge = edge or (min(sides) if sides else None)
        edge = None if edge is None else int(edge / pct)
    elif family == "Levit" and edge is not None:
        edge = int(edge * 256 / 224)
    resize = str(edge) if edge is not None else _words(sides or crop)
    return {"size": _words(crop), "resize": resize}


def _normalising(config: dict[str, Any], family: str | None, factor: float) -> dict[str, str]:
    """The flags `mean` and `std`, for pixels that were multiplied by a factor."""
    mean, std = (_numbers(config.get(f"image_{name}")) for name in ("mean", "std"))
    normalises = config.get("do_normalize", True)
    again = std if family == "EfficientNet" and config.get("include_top", True) else None
    mean, std = (mean, std) if normalises else (None, None)
    if again is not None:  # it divides by image_std a second time
        std = [
            first * second for first, second in zip(std or [1.0] * len(again), again, strict=True)
        ]
    if config.get("rescale_offset"):
        if abs(factor * 127.5 - 1) > 1e-6:
            raise ImportRefused(
                f"preprocessor_config.json: rescale_offset with rescale_factor {factor:g}; "
                "expected 1/127.5, since versions of transformers read others differently. Give "
                "the pixels' range as --scale, --mean and --std, and leave rescale_offset out"
            )
        mean = [each + 1 for each in mean or [0.0]]
    flags = {"mean": mean, "std": std}
    return {name: _words(values) for name, values in flags.items() if values is not None}


def _edge(size: Any, config: dict[str, Any], family: str | None) -> int | None:
    """The length that the shorter side is scaled to; None where the config names no such length.

    A size of one number means the shorter side in some families, else both sides. In a file
    without a type it means the shorter side if the file says how the centre is cut out.
    """
    if isinstance(size, dict):
        size = size.get("shortest_edge")
    elif family is None:
        cuts = config.get("do_center_crop") is not None or config.get("crop_pct")
        size = size if cuts else None
    elif family not in _EDGES:
        size = None
    return size if isinstance(size, int) else None


def _sides(size: Any) -> list[int] | None:
    """[height, width] of a size; None where it names one side only."""
    if isinstance(size, dict):
        sides = [size.get("height"), size.get("width")]
        found = [side for side in sides if isinstance(side, int)]
        return found if len(found) == 2 else None
    return [size, size] if isinstance(size, int) else None


def _numbers(value: Any) -> list[float] | None:
    """The numbers of a member that is one for each channel, or one for all; None without it."""
    values = value if isinstance(value, list) else [value]
    return values if values and all(isinstance(n, (int, float)) for n in values) else None


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
