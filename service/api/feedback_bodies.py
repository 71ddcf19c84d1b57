"""Reads labels of answers from the bodies of POST /feedback: JSON, CSV or Parquet."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from service.api.edge.errors import Problem
from service.evaluate.feedback import MAX_ITEMS, InvalidFeedback, Item, parse_items
from service.wire.digits import decimal_number, whole_number
from service.wire.faults import Malformed
from service.wire.json_text import parse_storable
from service.wire.shown import short
from service.wire.tables import csv_text
from service.wire.tables.parquet import read_parquet
from service.wire.tables.reader import CSV, PARQUET

MAX_TABLE_BYTES = 64 * 2**20
"""The most bytes of a Parquet file once decompressed: 100,000 ids of 256 characters are 26 MB."""
_COLUMNS = ("request_id", "row", "label", "sampled")


def json_items(body: bytes) -> list[Item]:
    """Read labels from JSON. Raises Malformed, TooLarge, InvalidInput or InvalidFeedback."""
    document = parse_storable(body)
    if not isinstance(document, dict) or set(document) != {"items"}:
        raise Problem(
            "invalid",
            f"the body is {short(document)}; expected "
            '{"items": [{"request_id": …, "row": …, "label": …, "sampled": …}]}',
        )
    return parse_items(document["items"])


def csv_items(body: bytes) -> list[Item]:
    """Read labels from CSV with a header. Raises Malformed, TooLarge or InvalidFeedback."""
    lines = csv_text.Lines(body)
    rows = csv_text.rows_of(lines)
    header = next(rows, [])
    _check_columns(header)
    items: list[dict[str, Any]] = []
    numbers: list[int] = []
    for fields in rows:
        if len(fields) != len(header):
            raise Malformed(
                f"line {lines.number} has {len(fields)} fields; expected {len(header)}, as the "
                "header has"
            )
        numbers.append(lines.number)
        items.append(_typed(dict(zip(header, fields, strict=True)), lines.number))
        if len(items) > MAX_ITEMS:
            break
    return parse_items(items, name_of=lambda number: f"line {numbers[number]}")


def parquet_items(body: bytes) -> list[Item]:
    """Read labels from a Parquet file. Raises the errors of `wire.faults`, or InvalidFeedback."""
    columns = read_parquet(
        body, None, max_rows=MAX_ITEMS, max_bytes=MAX_TABLE_BYTES, check=_check_columns
    )
    values = [
        column if isinstance(column, list) else column.tolist() for column in columns.values()
    ]
    found = []
    for fields in zip(*values, strict=True):
        item = {
            name: value
            for name, value in zip(columns, fields, strict=True)
            if value is not None and value == value  # noqa: PLR0124 - NaN stands for null
        }
        row = item.get("row")
        if isinstance(row, float) and row.is_integer():  # a column with nulls comes as float64
            item["row"] = int(row)
        found.append(item)
    return parse_items(found)


def _check_columns(names: Sequence[str], _: Sequence[str] | None = None) -> None:
    """Raise Malformed unless the columns of a table are those of labels."""
    unknown = [name for name in names if name not in _COLUMNS]
    if unknown or len(set(names)) != len(names) or not {"request_id", "label"} <= set(names):
        raise Malformed(
            f"the header is {', '.join(names[:20])[:200] or 'missing'}; expected request_id, "
            "label, and optionally row and sampled"
        )


TABLES: dict[str, Callable[[bytes], list[Item]]] = {CSV: csv_items, PARQUET: parquet_items}
"""The reader of each content type that is a table."""


def _typed(fields: dict[str, str], line: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: text for name, text in fields.items() if text}
    for name, read in _READ.items():
        if name in found:
            number = read(found[name].strip(" "))
            if number is None:
                text = f"expected a number in digits; got {found[name][:40]!r}"
                raise InvalidFeedback([(f"line {line}.{name}", text)])
            found[name] = number
    return found


_READ: dict[str, Callable[[str], float | None]] = {
    "row": partial(whole_number, below=2**32),
    "sampled": decimal_number,
}
