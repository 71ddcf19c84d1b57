"""Finds the numbers of a CSV file that lose digits when they are read as numbers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

    from training.data.sources.table_file import TableFile

BLOCK = 2**22
"""The bytes of the file that are searched for leading zeros: its beginning."""
_PADDED = r"^\s*0\d+\s*$"
_WHOLE = r"^\s*[-+]?\d+\s*$"


def lost_digits(table: "TableFile", names: Sequence[str]) -> list[str]:
    """Return a note for each numeric column of a CSV file whose numbers are not what was written.

    Codes such as 01234 lose their zeros. Whole numbers beyond 64 bits are read as float64, and
    different ones become equal.
    """
    if table.path.suffix.lower() == ".parquet":
        return []
    return [*_padded(table, names), *_merged(table, names)]


def merged(name: str) -> str:
    """Return the note on a column whose whole numbers become equal in float64."""
    return (
        f"column '{name}': whole numbers beyond 2^53 become equal as numbers of a model; take "
        f"them as strings with &category={name}, or leave the column out with &without={name}"
    )


def _padded(table: "TableFile", names: Sequence[str]) -> list[str]:
    from pyarrow import compute, types

    whole = [name for name in names if types.is_integer(table.columns.column(name).type)]
    notes = []
    for name, written in _written(table, whole, first=True).items():
        padded = written.filter(compute.match_substring_regex(written, _PADDED))
        if len(padded):
            notes.append(
                f"column '{name}': numbers such as {padded[0].as_py().strip()} lose their leading "
                f"zeros; if they are codes, take them as strings with &category={name}"
            )
    return notes


def _merged(table: "TableFile", names: Sequence[str]) -> list[str]:
    from pyarrow import compute, types

    large = []
    for name in names:
        column = table.columns.column(name)
        if types.is_floating(column.type):
            values = column.drop_null().to_numpy()
            if (np.abs(values) >= 2.0**63).any():
                large.append(name)
    notes = []
    for name, written in _written(table, large, first=False).items():
        whole = written.filter(compute.match_substring_regex(written, _WHOLE)).to_pylist()
        if len(np.unique(np.array(whole, np.float64))) < len({int(cell) for cell in whole}):
            notes.append(merged(name))
    return notes


def _written(
    table: "TableFile", names: list[str], *, first: bool
) -> dict[str, "pa.Array[Any] | pa.ChunkedArray[Any]"]:
    """Return the different cells of columns as they are written; of the first block, or of all."""
    import pyarrow as pa
    from pyarrow import csv

    if not names:
        return {}
    options = {
        "read_options": csv.ReadOptions(
            use_threads=False, encoding=table.encoding, block_size=BLOCK
        ),
        "parse_options": csv.ParseOptions(newlines_in_values=True),
        "convert_options": csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), include_columns=names
        ),
    }
    if first:
        with csv.open_csv(table.path, **options) as reader:
            cells = reader.read_next_batch()
    else:
        cells = csv.read_csv(table.path, **options)
    return {name: cells.column(name).unique() for name in names}
