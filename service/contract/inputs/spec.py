"""The `input` of a model.json: what a graph takes, and how a request's rows become that."""

import math
from typing import Annotated, Literal, Self, TypeAlias, cast

from pydantic import Field, PrivateAttr, field_validator, model_validator

from service.contract.inputs.familiarity import InputStatistics
from service.contract.portions import Long
from service.contract.strict import Strict
from service.contract.values import Single, between

RECORD = "record"
"""The `dtype` for a graph with several inputs: each row is a record with one field per input."""

MAX_TEXT_CHARACTERS = 20_000
"""The most characters of one text: a graph that splits texts into words pads every row of a batch
to the longest.
"""

TENSOR_DTYPES = (
    "float16",
    "float32",
    "float64",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "bool",
    "string",
)

Color: TypeAlias = Literal["RGB", "BGR", "L"]
Resize: TypeAlias = (
    Literal["stretch", "crop", "letterbox"]
    | Annotated[int, Field(ge=1, le=16384)]
    | Annotated[Long[Annotated[int, Field(ge=1, le=16384)]], Field(min_length=2, max_length=2)]
)
Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

_IMAGE_ONLY = (
    "size", "color", "resize", "resample", "fill", "scale", "mean", "std", "layout",
)  # fmt: skip


class TokenizerSpec(Strict):
    """How texts become the tensors of a transformer.

    file: a Hugging Face `tokenizer.json` beside the model. max_length: the most tokens of a text,
    the rest is cut off; null leaves the limit to the file. truncation_side: the end that is cut
    off; null leaves it to the file. pad_id: the token that fills a short text up to the longest of
    its batch; null leaves it to the file. inputs: for each graph input, the tokenizer output that
    feeds it.
    """

    file: str
    max_length: Annotated[int, Field(ge=1, le=10**9)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    pad_id: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    inputs: dict[str, Literal["ids", "attention_mask", "type_ids"]]


class InputSpec(Strict):
    """One input of the graph. `shape` includes the batch, null where a dimension is free.

    `missing` means that the model accepts NaN, or the empty string for null. `categories` lists the
    only values that the graph accepts in a column; a row of several columns has a list for each, or
    null where any value is accepted. An image becomes the tensor in these steps:
    decode; convert to `color`; resize to `size` [height, width] as `resize` says, with the filter
    `resample` (bilinear unless given); multiply by `scale` (1/255 unless given); subtract `mean`
    and divide by `std` for each channel. For integer dtypes the pixels stay 0 … 255, and scale,
    mean and std must be null. `service.contract.pixels` takes these steps. A text may become
    tokens, as `tokenizer` says. `statistics` holds the mean and spread of the training tensors;
    for kind "columns", of the float columns in their order.
    """

    name: str
    kind: Literal["tensor", "image", "text", "columns"]
    shape: Annotated[Long[Annotated[int, Field(ge=1, le=2**40)] | None], Field(min_length=1)]
    dtype: str
    missing: bool = False
    categories: (
        Annotated[Long[str], Field(min_length=1)]
        | Long[int]
        | Long[Long[str] | Long[int] | None]
        | None
    ) = None
    size: (
        Annotated[Long[Annotated[int, Field(ge=1, le=8192)]], Field(min_length=2, max_length=2)]
        | None
    ) = None
    color: Color | None = None
    resize: Resize | None = None
    resample: Resample | None = None
    fill: Annotated[int, Field(ge=0, le=255)] | None = None
    scale: Annotated[float, Field(gt=0), between(1e-30, 1e30)] | None = None
    mean: Long[Single] | None = None
    std: Long[Annotated[float, Field(gt=0), between(1e-30, 1e30)]] | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    tokenizer: TokenizerSpec | None = None
    statistics: InputStatistics | None = None
    _columns: tuple["InputSpec", ...] = PrivateAttr(())

    @property
    def columns(self) -> tuple["InputSpec", ...]:
        """The inputs of a graph that has several, for kind "columns"; else none."""
        return self._columns

    @property
    def may_be_pixels(self) -> bool:
        """Whether tensors have the shape of pictures: 1 or 3 channels, first or last."""
        if self.kind != "tensor" or len(self.shape) != 4:
            return False
        _, first, middle, last = self.shape
        return (first in (1, 3) and middle not in (1, 3)) or last in (1, 3)

    def categories_of(self, column: int) -> list[str] | list[int] | None:
        """The values that the graph accepts in a column; None where it accepts any.

        column: its position in a row, counted in row-major order.
        """
        if not self.categories or isinstance(self.categories[0], (str, int)):
            return cast("list[str] | list[int] | None", self.categories)
        return self.categories[column]

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, dtype: str) -> str:
        if dtype not in {*TENSOR_DTYPES, RECORD}:
            raise ValueError(f"expected one of {', '.join(TENSOR_DTYPES)}")
        return dtype

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.kind == "columns") != (self.dtype == RECORD):
            raise ValueError(f"kind 'columns' and dtype '{RECORD}' must be used together")
        self._check_categories()
        if self.missing and not self.dtype.startswith(("float", "string")):
            raise ValueError(f"missing needs a float dtype or string, not '{self.dtype}'")
        if self.statistics is not None and not self.dtype.startswith(("float", RECORD)):
            raise ValueError(f"statistics need a float dtype, not '{self.dtype}'")
        if self.tokenizer is not None and self.kind != "text":
            raise ValueError(f"tokenizer is only for kind 'text', not '{self.kind}'; leave it out")
        if self.kind == "image":
            self._check_image()
            return self
        for name in _IMAGE_ONLY:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is only for kind 'image', not '{self.kind}'; leave it out"
                )
        if (self.kind == "text") != (self.dtype == "string"):
            raise ValueError("kind 'text' and dtype 'string' must be used together")
        return self

    def _check_categories(self) -> None:
        if self.categories is None:
            return
        if self.dtype.startswith("float"):
            raise ValueError(f"categories need texts or whole numbers, not '{self.dtype}'")
        if self.categories and not isinstance(self.categories[0], (str, int)):
            columns = math.prod(n or 1 for n in self.shape[1:])
            if len(self.categories) != columns:
                raise ValueError(
                    f"categories covers {len(self.categories)} columns; expected {columns}"
                )

    def _check_image(self) -> None:
        if None in (self.size, self.color, self.resize, self.layout):
            raise ValueError("kind 'image' needs size, color, resize and layout")
        channels = 1 if self.color == "L" else 3
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != channels:
                raise ValueError(
                    f"{name} has {len(values)} entries; expected {channels}, one for each channel "
                    f"of color '{self.color}'"
                )
        if not self.dtype.startswith("float") and (self.mean or self.std or self.scale):
            raise ValueError(f"scale, mean and std need a float dtype, not '{self.dtype}'")
        self._check_image_shape(channels)

    def _check_image_shape(self, channels: int) -> None:
        assert self.size is not None
        height, width = self.size
        expected = [channels, height, width] if self.layout == "NCHW" else [height, width, channels]
        if len(self.shape) != 4 or any(
            given not in (None, wanted)
            for given, wanted in zip(self.shape[1:], expected, strict=True)
        ):
            raise ValueError(
                f"shape is {self.shape}; expected [batch, {', '.join(map(str, expected))}], as "
                "size, color and layout say"
            )
