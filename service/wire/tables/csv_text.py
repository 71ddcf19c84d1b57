"""CSV (RFC 4180) → columns of texts by name, row by row, within bounds."""

import csv
import io
from collections.abc import Iterator, Sequence

from service.contract.inputs.uncopied import file_of
from service.wire.digits import decimal_number
from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.tables.rows import Column, check_names

MAX_ROW_CHARACTERS = 2**20
"""The most characters of one row, including its quoted line ends."""
MAX_EMPTY_LINES = 100_000
"""The most empty lines. They are not rows, so the limit on rows does not bound their cost."""


def read_csv(
    body: bytes | bytearray,
    expected: Sequence[str] | None,
    *,
    header: bool,
    width: int,
    max_rows: int,
) -> dict[str, Column]:
    """The columns of a body of UTF-8 text. Raises Malformed, InvalidInput or TooLarge.

    expected: the names of the columns, in the model's order; None: there is one. header: whether
    the first row holds names; without it, the columns are in the model's order. width: columns of
    a body without a header. max_rows: how many rows one request may have.
    """
    lines = Lines(body)
    rows = rows_of(lines)
    names = list(expected or [""]) if expected or width == 1 else [str(n) for n in range(width)]
    if header:
        found = next(rows, None)
        if found is None:
            raise InvalidInput("the table has no rows; expected at least one")
        names = [name.strip() for name in found]
        _check_header(names, expected)
    cells: list[list[str | None]] = [[] for _ in names]
    count = 0
    for row in rows:
        if len(row) != len(names):
            raise InvalidInput(
                f"row {count} of the table, up to line {lines.number}, has {len(row)} cells; "
                f"expected {len(names)}"
            )
        count += 1
        if count > max_rows:
            raise TooLarge(
                f"the body has more than {max_rows} rows, the most that can wait: send fewer"
            )
        for column, cell in zip(cells, row, strict=True):
            column.append(cell)
    if not count:
        raise InvalidInput("the table has no rows; expected at least one")
    return dict(zip(names, cells, strict=True))


def _check_header(names: Sequence[str], expected: Sequence[str] | None) -> None:
    try:
        check_names(names, expected)
    except InvalidInput as error:
        hint = ""
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            hint = "; cells are separated by commas"
        elif all(decimal_number(name) is not None for name in names):
            hint = "; the first row holds numbers: for a table without names, send "
            hint += "text/csv;header=absent"
        raise InvalidInput(f"{error}{hint}") from None


class Lines:
    """The lines of a body, decoded piece by piece; `number` is the last one's."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._text = io.TextIOWrapper(file_of(body), encoding="utf-8-sig", newline="")
        self.number = 0
        self.characters = 0
        """Characters of the current row so far."""

    def __iter__(self) -> Iterator[str]:
        while True:
            try:
                line = self._text.readline(MAX_ROW_CHARACTERS + 1 - self.characters)
            except UnicodeDecodeError as error:
                raise Malformed(
                    f"the body is not UTF-8 text ({error.reason}); encode it as UTF-8"
                ) from None
            if not line:
                return
            self.number += 1
            self.characters += len(line)
            if self.characters > MAX_ROW_CHARACTERS:
                raise TooLarge(
                    f"line {self.number}: a row has more than {MAX_ROW_CHARACTERS:,} characters; "
                    "check its quotes, or shorten its texts"
                )
            yield line


def rows_of(lines: Lines) -> Iterator[list[str]]:
    """The rows that are not empty lines. Raises Malformed, or TooLarge for a row that is too long.

    After each row, `lines.number` is its last line.
    """
    reader = csv.reader(iter(lines), strict=True)
    empty = 0
    while True:
        lines.characters = 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise Malformed(
                f"the body is not CSV: line {lines.number}: {error}; expected cells separated by "
                "commas, with quotes as in RFC 4180"
            ) from None
        if row:
            yield row
            continue
        empty += 1
        if empty > MAX_EMPTY_LINES:
            raise TooLarge(
                f"line {lines.number}: more than {MAX_EMPTY_LINES:,} lines are empty; remove them"
            )
