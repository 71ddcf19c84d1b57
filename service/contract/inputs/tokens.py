"""Turns texts into the inputs of a transformer with a `tokenizer.json` of Hugging Face's
tokenizers.

A batch is padded to its longest text. A text is truncated as the file says, or as `max_length` and
`truncation_side` do, and padded with the token that the file or `pad_id` states.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract.extras import missing_extra
from service.contract.inputs.spec import TokenizerSpec

Array = NDArray[Any]
DEFAULT_LENGTH = 512
"""The most tokens of a text, where neither the file nor model.json states a limit."""


class TokenizerUnusable(ValueError):
    """A tokenizer that cannot be opened; the message says why and what to do."""


class Tokens:
    """A tokenizer, and the graph inputs that its results feed."""

    def __init__(self, folder: Path, spec: TokenizerSpec, dtypes: Mapping[str, str]) -> None:
        """Open the tokenizer. Raises TokenizerUnusable.

        dtypes: the dtype of each graph input, by name.
        """
        self._tokenizer = _open(folder / spec.file, spec)
        # The fast way leaves out the place of each token in its text, which no graph takes.
        self._encode = getattr(self._tokenizer, "encode_batch_fast", self._tokenizer.encode_batch)
        self._inputs = {name: (part, np.dtype(dtypes[name])) for name, part in spec.inputs.items()}

    def __call__(self, texts: Array) -> dict[str, Array]:
        """Tokenise texts [n] or [n, 1]. Returns int [n, longest] tensors by input name."""
        encoded = self._encode(texts.ravel().tolist())
        if not encoded[0].ids:  # only empty texts, and a graph refuses a tensor without tokens
            padding = {"ids": self._tokenizer.padding["pad_id"]}
            return {
                name: np.full((len(encoded), 1), padding.get(part, 0), dtype)
                for name, (part, dtype) in self._inputs.items()
            }
        return {
            name: np.array([getattr(each, part) for each in encoded], dtype).reshape(
                len(encoded), -1
            )
            for name, (part, dtype) in self._inputs.items()
        }


def _open(path: Path, spec: TokenizerSpec) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise TokenizerUnusable(missing_extra(error, first="tokenizers") or str(error)) from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises plain exceptions
        raise TokenizerUnusable(
            f"{path} cannot be read as a tokenizer: {error}; expected a tokenizer.json of Hugging "
            "Face's tokenizers"
        ) from None
    stated = tokenizer.truncation or {}
    tokenizer.enable_truncation(
        max_length=spec.max_length or stated.get("max_length", DEFAULT_LENGTH),
        direction=spec.truncation_side or stated.get("direction", "right"),
    )
    padding = tokenizer.padding or {}
    kept = {k: padding[k] for k in ("pad_id", "pad_token", "pad_type_id") if k in padding}
    if spec.pad_id is not None:
        token = tokenizer.id_to_token(spec.pad_id) or "[PAD]"
        kept |= {"pad_id": spec.pad_id, "pad_token": token}
    tokenizer.enable_padding(length=None, **(kept or _pad_token(tokenizer)))
    return tokenizer


def _pad_token(tokenizer: Any) -> dict[str, Any]:
    """Padding for a file that names none: a common padding token that it has, else token 0."""
    for token in ("[PAD]", "<pad>", "<|endoftext|>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return {"pad_id": found, "pad_token": token}
    return {"pad_id": 0}
