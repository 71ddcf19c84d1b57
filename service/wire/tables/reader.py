"""A body that is a table or a file of arrays → the model's input tensor."""

import math
from collections.abc import Sequence
from functools import lru_cache

from service.contract.inputs.spec import InputSpec
from service.wire.arrays import Array, fitted
from service.wire.faults import InvalidInput, UnsupportedBody
from service.wire.shown import shape_words
from service.wire.tables import arrow, csv_text, npz, parquet, rows

CSV, NPZ = "text/csv", "application/x-npz"
ARROW, ARROW_FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
PARQUET = "application/vnd.apache.parquet"
TYPES = (CSV, NPZ, ARROW, ARROW_FILE, PARQUET)
"""The content types that are read here."""
DEAR_TYPES = frozenset(TYPES) - {CSV}
"""The content types among TYPES whose library is slow to load, or whose bytes may expand to many
more.
"""


def read_table(
    content_type: bytes,
    body: bytes | bytearray,
    spec: InputSpec,
    names: Sequence[str] | None,
    *,
    model: str,
    max_rows: int,
    max_bytes: int,
) -> Array:
    """The model's input tensor of a body. Raises the errors of `wire.faults`.

    content_type: with its parameters. names: the column names of a model with a single input, where
    its model.json has them. model: its name, for messages. max_rows, max_bytes: how many rows one
    request may have, and how many bytes when decompressed.
    """
    kind, parameters = _parsed(content_type)
    if kind == NPZ:
        return _arrays(npz.read_npz(body, max_bytes=max_bytes), spec, names, model=model)
    if kind == CSV:
        return _csv(body, parameters, spec, names, model=model, max_rows=max_rows)
    expected = rows.expected_names(spec, names, model=model)
    read = parquet.read_parquet if kind == PARQUET else arrow.read_arrow
    table = read(body, expected, max_rows=max_rows, max_bytes=max_bytes)
    return rows.table_rows(table, spec, expected)


def _csv(
    body: bytes | bytearray,
    parameters: dict[str, str],
    spec: InputSpec,
    names: Sequence[str] | None,
    *,
    model: str,
    max_rows: int,
) -> Array:
    charset = parameters.get("charset", "utf-8")
    if charset not in {"utf-8", "utf8", "us-ascii"}:
        raise UnsupportedBody(f"the table's charset is {charset[:40]}; expected utf-8")
    header = parameters.get("header", "present")
    if header not in {"present", "absent"}:
        raise UnsupportedBody(f"text/csv;header={header[:40]}; expected present or absent")
    if header == "present":
        expected = rows.expected_names(spec, names, model=model)
        width = 1
    else:
        width = len(spec.columns) or _width(spec)
        given = [column.name for column in spec.columns] or names
        expected = [str(at) for at in range(width)] if given is None else list(given)
    table = csv_text.read_csv(
        body, expected, header=header == "present", width=width, max_rows=max_rows
    )
    return rows.table_rows(table, spec, expected)


def _width(spec: InputSpec) -> int:
    """The number of columns of a model with one input. Raises UnsupportedBody for other shapes."""
    if spec.kind == "image" or len(spec.shape) > 2 or None in spec.shape[1:]:
        raise InvalidInput(
            f"the body is a table; the model takes {shape_words(spec.shape)}: send a .npy array"
        )
    return math.prod(n for n in spec.shape[1:] if n is not None)


def _arrays(
    arrays: dict[str, Array], spec: InputSpec, names: Sequence[str] | None, *, model: str
) -> Array:
    """The input tensor from a file with one array in the model's shape, or one array per column."""
    if len(arrays) == 1 and not spec.columns:
        return fitted(next(iter(arrays.values())), spec)
    expected = rows.expected_names(spec, names, model=model)
    rows.check_names(list(arrays), expected)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        shown = ", ".join(f"{name[:40]}: {count}" for name, count in list(lengths.items())[:8])
        raise InvalidInput(
            f"the arrays have different numbers of rows ({shown}); expected equal numbers"
        )
    return rows.table_rows(arrays, spec, expected)


@lru_cache(maxsize=64)
def _parsed(content_type: bytes) -> tuple[str, dict[str, str]]:
    """A content type and its parameters, in lower case."""
    kind, *parts = content_type[:200].decode("latin-1").lower().split(";")
    pairs = (part.partition("=") for part in parts)
    return kind.strip(), {name.strip(): value.strip().strip('"') for name, _, value in pairs}
