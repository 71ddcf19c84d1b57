"""Reads unlabelled rows for a model block by block, from files that need not fit in memory.

Parquet, CSV and JSON lines hold columns; `.npz` and `.npy` hold arrays; folders and tar shards hold
image files. A block is identified by its file and its number, so that a run can skip the blocks
that it has finished.
"""

import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.contract import pixels
from service.contract.inputs.columns import records
from service.contract.inputs.spec import InputSpec
from service.contract.nearest import nearest_path
from training.data.columns import is_number, written
from training.data.json_lines import check_json_lines
from training.data.pixels import SUFFIXES as IMAGES
from training.data.problems import check_quotes
from training.data.sources.folders import files_below
from training.data.sources.table_file import as_meant, check_encoding, check_lengths, distinct
from training.faults import BadData, Fault, WrongUse, absent, instead, is_address, readable, say

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".parquet", ".csv", ".jsonl", ".ndjson")
ARRAYS = (".npz", ".npy")
READABLE = (*TABLES, *ARRAYS, ".tar", *IMAGES)
FOLDER = "images"
"""The `kind` of a source that is a list of image files, in place of a suffix."""

Rows = NDArray[Any]


@dataclass(frozen=True)
class Source:
    """One file, or the image files of one folder, in order.

    name: what the answers call the file: the whole path if other files have the same name. The
    members of a tar shard are below it; empty if there is only one shard.
    """

    path: Path
    files: tuple[Path, ...] = ()
    name: str = ""

    @property
    def kind(self) -> str:
        """The file's suffix, which decides how it is read, or `FOLDER`."""
        return FOLDER if self.files else self.path.suffix.lower()

    def names_of(self, block: "Block") -> list[str]:
        """Return what the answers call the file of each row of a block."""
        if not block.names:
            return [self.name] * len(block.inputs)
        return [f"{self.name}/{name}" if self.name else name for name in block.names]


@dataclass(frozen=True)
class Block:
    """Rows `start` to `start + len(inputs)` of a source.

    inputs: [n, …] as the model takes them. kept: the columns to copy to the output, by name.
    names: the image file of each row, if the rows are image files.
    """

    start: int
    inputs: Rows
    kept: "dict[str, pa.Array]"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    columns: the feature columns, in the model's order; None takes every column that is not in
    `keep` or `leave_out`. keep: columns to copy to the output. leave_out: columns to ignore, such
    as a label. array: the name of the array in an .npz file. rows: the rows of a block.
    """

    spec: InputSpec
    columns: tuple[str, ...] | None = None
    keep: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    array: str | None = None
    rows: int = 8192


def find(place: str) -> list[Source]:
    """Return the sources that a file, a folder or a pattern names, in order.

    Raises WrongUse if there are none, or none that can be read.
    """
    path = Path(place)
    if not place:
        raise WrongUse("DATA is empty; expected a file, a folder or a pattern")
    if any(letter in place for letter in "*?["):
        root = Path(path.anchor or ".")
        found = sorted(
            each for each in root.glob(place.removeprefix(path.anchor)) if each.is_file()
        )
    elif path.is_dir():
        found = [each for each in files_below(path) if each.is_file()]
    elif path.exists():
        found = [path]
    else:
        if is_address(path):
            raise WrongUse(absent(path))
        raise WrongUse(f"{place}: no such file or folder{nearest_path(path)}")
    known = [each for each in found if each.suffix.lower() in READABLE]
    if not found:
        raise WrongUse(f"{place}: no file has such a name; expected a file, a folder or a pattern")
    if not known:
        held = f"holds {len(found)} files, none of which can be read"
        if found == [path]:
            held = f"is no file that can be read{instead(path)}"
        raise WrongUse(f"{place}: {held}; expected {', '.join(READABLE)}")
    if len(known) < len(found):
        first = next(each for each in found if each.suffix.lower() not in READABLE)
        say(
            f"warning: {place}: {len(found) - len(known)} files of other kinds are left out "
            f"(the first is {first})"
        )
    images = tuple(each for each in known if each.suffix.lower() in IMAGES)
    others = [each for each in known if each.suffix.lower() not in IMAGES]
    times = Counter(each.name for each in others)
    shards = sum(each.suffix.lower() == ".tar" for each in others)
    named = [Source(each, name=_name_of(each, times[each.name], shards)) for each in others]
    return [*named, *([Source(path, images)] if images else [])]


def _name_of(path: Path, times: int, shards: int) -> str:
    if path.suffix.lower() == ".tar" and shards == 1:
        return ""
    return path.name if times == 1 else str(path)


def _shown(path: Path) -> bool:
    """Return whether a path, relative to its folder or archive, has no hidden part."""
    return not any(
        (part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts
    )


def blocks(
    source: Source, reading: Reading, *, skip: Callable[[int], bool]
) -> Iterator[tuple[int, Block]]:
    """Yield (number, block) of a source for every block for which `skip(number)` is false.

    Raises WrongUse when the source does not fit the model, BadData when it is damaged.
    """
    kind = source.kind
    if kind in TABLES:
        yield from _table_blocks(source.path, reading, skip)
    elif kind in ARRAYS:
        yield from _array_blocks(source.path, reading, skip)
    else:
        if reading.spec.kind != "image":
            raise WrongUse(
                f"{source.path}: holds images; the model takes {reading.spec.kind} input"
            )
        members = _tar_members(source.path) if kind == ".tar" else _files(source.files)
        yield from _image_blocks(source.path, members, reading, skip)


def _table_blocks(
    path: Path, reading: Reading, skip: Callable[[int], bool]
) -> Iterator[tuple[int, Block]]:
    import pyarrow as pa

    if reading.spec.kind == "image":
        raise WrongUse(f"{path}: is a table; the model takes images")
    try:
        number, start, waiting = 0, 0, None
        for batch in _batches(path, reading):
            table = pa.Table.from_batches([batch])
            waiting = table if waiting is None else pa.concat_tables([waiting, table])
            while waiting.num_rows >= reading.rows:
                whole, waiting = waiting.slice(0, reading.rows), waiting.slice(reading.rows)
                if not skip(number):
                    yield number, _of_table(path, whole, start, reading)
                number, start = number + 1, start + whole.num_rows
        if waiting is not None and waiting.num_rows and not skip(number):
            yield number, _of_table(path, waiting, start, reading)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if not instead(path):
            _check_lines(path)
        raise BadData(
            f"{path}: cannot be read: {readable(error)}{instead(path)}; correct it, or write it "
            "anew as CSV, JSON lines or Parquet"
        ) from error


def _check_lines(path: Path) -> None:
    """Raise BadData that names the first line of a CSV or JSON file that cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return
    check_encoding(path, "utf-8", cure="save the file as UTF-8")
    if suffix == ".csv":
        check_lengths(path, "utf-8")
    else:
        check_json_lines(path)


def _batches(path: Path, reading: Reading) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa
    from pyarrow import csv, parquet
    from pyarrow import json as arrow_json

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with parquet.ParquetFile(path) as file:
            distinct(path, file.schema_arrow.names)
            yield from file.iter_batches(batch_size=reading.rows)
    elif suffix == ".csv":
        check_quotes(path)
        quoted = csv.ParseOptions(newlines_in_values=True)
        with csv.open_csv(path, parse_options=quoted) as reader:
            types = _types(path, reading, reader.schema)
        converted = csv.ConvertOptions(column_types=types, include_columns=[*types])
        with csv.open_csv(path, parse_options=quoted, convert_options=converted) as reader:
            yield from reader
    else:
        with arrow_json.open_json(path) as reader:
            known = pa.schema([*_types(path, reading, reader.schema).items()])
        options = arrow_json.ParseOptions(explicit_schema=known, unexpected_field_behavior="ignore")
        with arrow_json.open_json(path, parse_options=options) as reader:
            yield from reader


def _types(path: Path, reading: Reading, found: "pa.Schema") -> "dict[str, pa.DataType]":
    """The columns to read of a CSV or JSON file, with types that all their rows fit.

    found: the types of its first rows only, where numbers may be whole by chance, or missing. What
    is a string for the model stays as it is written in a CSV file, as do kept columns, so that 01
    does not become 1.
    """
    import pyarrow as pa

    aside = {*reading.keep, *reading.leave_out}
    named = reading.columns or [name for name in found.names if name not in aside]
    dtypes = dict.fromkeys(named, reading.spec.dtype)
    dtypes |= {each.name: each.dtype for each in reading.spec.columns}
    dtypes |= dict.fromkeys(reading.keep, "string")
    types: dict[str, pa.DataType] = {}
    for name in (each for each in dtypes if each in found.names):
        places = found.get_all_field_indices(name)
        if len(places) > 1:
            raise BadData(f"{path}: has two columns named '{name}'; rename one")
        kind = found.types[places[0]]
        if dtypes[name] == "string":
            as_is = path.suffix.lower() != ".csv" and not pa.types.is_null(kind)
            types[name] = kind if as_is else pa.string()
        else:
            types[name] = kind if "int" in dtypes[name] else _wider(kind)
    return types


def _wider(kind: "pa.DataType") -> "pa.DataType":
    """The type that also holds fractions, where the first rows had none."""
    import pyarrow as pa

    if pa.types.is_list(kind):
        return pa.list_(_wider(kind.value_type))
    narrow = pa.types.is_integer(kind) or pa.types.is_null(kind)
    return pa.float64() if narrow else kind


def _of_table(path: Path, table: "pa.Table", start: int, reading: Reading) -> Block:
    missing = [name for name in reading.keep if name not in table.column_names]
    if missing:
        raise WrongUse(f"{path}: has no column '{missing[0]}' to keep; it has {_listed(table)}")
    kept = {name: table.column(name).combine_chunks() for name in reading.keep}
    return Block(start, _features(path, as_meant(table), start, reading), kept)


def _features(path: Path, table: "pa.Table", start: int, reading: Reading) -> Rows:
    import pyarrow as pa

    aside = {*reading.keep, *reading.leave_out}
    names = reading.columns or tuple(n for n in table.column_names if n not in aside)
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise WrongUse(
            f"{path}: has no column '{missing[0]}' ({len(missing)} missing), which the model "
            f"takes; it has {_listed(table)}{_of_commas(table.column_names)}"
        )
    if not names:
        raise WrongUse(
            f"{path}: every column is kept or left out; name the features with --columns"
        )
    if reading.spec.columns:
        found = {spec.name: _column(path, table, start, spec) for spec in reading.spec.columns}
        return records(found)
    if reading.spec.kind == "text":
        if len(names) != 1:
            raise WrongUse(
                f"{path}: the model takes one text; name its column with --columns, one of "
                f"{_listed(table)}"
            )
        return _texts(path, table.column(names[0]), start, names[0])
    if len(names) == 1 and pa.types.is_nested(table.column(names[0]).type):
        return _lists(path, table.column(names[0]), start, names[0], reading)
    gaps = reading.spec.missing
    columns = [_numbers(path, table.column(name), start, name, missing=gaps) for name in names]
    return _fitted(path, np.stack(columns, axis=1), start, reading)


def _of_commas(names: Sequence[str]) -> str:
    wrong = len(names) == 1 and any(mark in names[0] for mark in ";\t|")
    return "; the columns of a CSV file are separated by commas" if wrong else ""


def _listed(table: "pa.Table") -> str:
    more = len(table.column_names) - 20
    return ", ".join(table.column_names[:20]) + (f" and {more} more" if more > 0 else "")


def _texts(path: Path, column: Any, start: int, name: str) -> Rows:
    values = column.to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise BadData(
                f"{path}, row {start + row}, column '{name}': {value!r} is not a text; expected a "
                "text in every row, such as an empty one"
            )
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _lists(path: Path, column: Any, start: int, name: str, reading: Reading) -> Rows:
    if not hasattr(column.type, "value_type"):
        raise BadData(
            f"{path}, rows from {start}, column '{name}': holds {column.type}; expected lists of "
            "numbers, or a column for each number"
        )
    lengths = {None if each.as_py() is None else len(each) for each in column}
    if len(lengths) != 1 or None in lengths:
        raise BadData(
            f"{path}, rows from {start}, column '{name}': lists of different lengths, or missing "
            "ones; expected lists of one length in every row"
        )
    (length,) = lengths
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if flat.dtype.kind not in "iufb":
        raise BadData(
            f"{path}, rows from {start}, column '{name}': lists of {column.type.value_type}; "
            "expected lists of numbers"
        )
    return _fitted(path, flat.reshape(-1, length), start, reading)


def _column(path: Path, table: "pa.Table", start: int, spec: InputSpec) -> Rows:
    """Read one input of a model whose inputs are a table's columns, [n, 1]."""
    column = table.column(spec.name)
    if spec.dtype != "string":
        values = _numbers(path, column, start, spec.name, missing=spec.missing)
        return _narrowed(path, values[:, None], start, spec)
    cells = column.to_pylist()
    row = next((row for row, cell in enumerate(cells) if isinstance(cell, bytes | list | dict)), -1)
    if row >= 0:
        raise BadData(
            f"{path}, row {start + row}, column '{spec.name}': holds {str(cells[row])[:60]}; "
            "expected one string"
        )
    found = np.empty((len(column), 1), dtype=object)
    found[:, 0] = [written(cell) for cell in cells]
    return found


def _numbers(path: Path, column: Any, start: int, name: str, *, missing: bool) -> Rows:
    import pyarrow as pa

    if column.null_count and not missing:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise BadData(
            f"{path}, row {start + row}, column '{name}': has no value "
            f"({column.null_count} rows of this block like it); give one, or leave these rows out"
        )
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    values = np.asarray(column.to_numpy())
    if column.null_count == len(values):
        return np.full(len(values), np.nan)
    if values.dtype == object and column.null_count:  # booleans with missing values
        values = np.array([np.nan if value is None else value for value in values])
    if values.dtype.kind not in "iufb":
        row = next((row for row, value in enumerate(values) if not is_number(value)), 0)
        raise BadData(
            f"{path}, row {start + row}, column '{name}': holds {str(values[row])[:60]!r}; "
            "expected numbers (name the features with --columns, or the others with --leave-out)"
        )
    wide = values.astype(np.float64)
    bad = np.flatnonzero(np.isinf(wide) if missing else ~np.isfinite(wide))
    if bad.size:
        raise BadData(
            f"{path}, row {start + bad[0]}, column '{name}': holds {values[bad[0]]}; "
            "expected a finite number"
        )
    return values


def _fitted(path: Path, rows: Rows, start: int, reading: Reading) -> Rows:
    """Convert rows, of which `start` is the first one's number, to the model's shape and dtype.

    A flat row is reshaped if only one shape is possible. Raises WrongUse if none fits, BadData for
    a number that does not fit.
    """
    wanted = reading.spec.shape[1:]
    if all(size is not None for size in wanted):
        sizes = [int(size) for size in wanted if size is not None]
        if rows.ndim == 2 and rows.shape[1] == int(np.prod(sizes)):
            rows = rows.reshape(len(rows), *sizes)
    if rows.ndim - 1 != len(wanted) or any(
        size not in (None, found) for size, found in zip(wanted, rows.shape[1:], strict=True)
    ):
        raise WrongUse(f"{path}: a row is {list(rows.shape[1:])}; the model takes {wanted}")
    return _narrowed(path, rows, start, reading.spec)


def _narrowed(path: Path, rows: Rows, start: int, spec: InputSpec) -> Rows:
    """Convert numbers to the model's dtype. Raises BadData for one that is not finite in it."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.ascontiguousarray(rows, dtype=spec.dtype)
    if found.dtype.kind != "f":
        return found
    odd = np.isinf(found) | (np.isnan(rows) & (not spec.missing))
    bad = np.flatnonzero(odd.reshape(len(found), -1).any(axis=1))
    if bad.size:
        value = rows[bad[0]][odd[bad[0]]].ravel()[0]
        raise BadData(
            f"{path}, row {start + bad[0]}: holds {value:g}; expected a finite number that fits "
            f"into the model's {spec.dtype}"
        )
    return found


def _array_blocks(
    path: Path, reading: Reading, skip: Callable[[int], bool]
) -> Iterator[tuple[int, Block]]:
    """Read an array from its file block by block; it is never in memory as a whole."""
    try:
        with _array_file(path, reading.array) as file:
            shape, dtype = _header(path, file)
            step = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            for number, start in enumerate(range(0, shape[0], reading.rows)):
                rows = min(reading.rows, shape[0] - start)
                data = file.read(rows * step)
                if len(data) != rows * step:
                    raise BadData(
                        f"{path}: ends within row {start + len(data) // max(step, 1)} of "
                        f"{shape[0]}, so it was cut short; copy it again"
                    )
                if not skip(number):
                    found = np.frombuffer(data, dtype).reshape(rows, *shape[1:])
                    yield number, Block(start, _array_rows(path, found, start, reading), {})
    except Fault:
        raise
    except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
        other = instead(path)
        if path.suffix.lower() == ".npz" and "ZIP" in other:  # as an .npz file is
            other = " (it was cut short: copy it again)"
        raise BadData(f"{path}: cannot be read: {readable(error)}{other}") from error


def _array_file(path: Path, member: str | None) -> IO[bytes]:
    if path.suffix.lower() == ".npy":
        return path.open("rb")
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        wanted = member or next((n for n in ("x", "x_test", "X") if n in names), None)
        if wanted not in names:
            raise WrongUse(
                f"{path}: name the array to score with --array; it has {', '.join(names) or 'none'}"
            )
        return archive.open(f"{wanted}.npy")


def _header(path: Path, file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(file)
    if fortran or dtype.hasobject or not shape:
        raise BadData(
            f"{path}: is an array of {dtype} of shape {list(shape)}, "
            f"{'Fortran' if fortran else 'C'} order; expected rows of numbers in C order, as "
            "np.save(FILE, np.ascontiguousarray(x)) writes them"
        )
    return shape, dtype


def _array_rows(path: Path, rows: Rows, start: int, reading: Reading) -> Rows:
    if reading.spec.kind == "text":
        if rows.dtype.kind != "U" or rows.ndim != 1:
            raise WrongUse(
                f"{path}: holds {rows.dtype} {list(rows.shape[1:])}; expected one text per row"
            )
        return rows.astype(object)
    if reading.spec.kind == "image":
        return _pixels(path, rows, reading.spec)
    if rows.dtype.kind not in "iufb":
        raise WrongUse(f"{path}: holds {rows.dtype}; the model takes {reading.spec.dtype}")
    wide = rows.reshape(len(rows), -1).astype(np.float64)
    there = ~np.isinf(wide) if reading.spec.missing else np.isfinite(wide)
    bad = np.flatnonzero(~there.all(axis=1))
    if bad.size:
        held = "infinity" if reading.spec.missing else "NaN or infinity"
        raise BadData(f"{path}, row {start + bad[0]}: holds {held}; expected finite numbers")
    return _fitted(path, rows, start, reading)


def _pixels(path: Path, rows: Rows, spec: InputSpec) -> Rows:
    """Convert uint8 images [n, H, W] or [n, H, W, channels] of the model's size to its tensor."""
    images = rows[..., None] if rows.ndim == 3 else rows
    channels = 3 if spec.color == "RGB" else 1
    wanted = [*(spec.size or []), channels]
    if images.dtype != np.uint8 or list(images.shape[1:]) != wanted:
        raise WrongUse(
            f"{path}: an image is {images.dtype} {list(images.shape[1:])}; the model takes uint8 "
            f"{wanted}"
        )
    return pixels.as_tensor(images, spec)


def _files(files: Sequence[Path]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for file in files:
        yield str(file), file.read_bytes


def _tar_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                place = Path(member.name)
                if member.isfile() and place.suffix.lower() in IMAGES and _shown(place):
                    file = archive.extractfile(member)
                    assert file is not None
                    yield member.name, file.read
            if archive.fileobj is not None and archive.fileobj.tell() == archive.offset:
                raise BadData(f"{path}: has no mark at its end, so it was cut short; copy it again")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise BadData(f"{path}: cannot be read as tar: {error}; make the archive again") from error


def _bytes(path: Path, name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise BadData(f"{path}, {name}: cannot be read: {readable(error)}") from error


def _image_blocks(
    path: Path,
    members: Iterator[tuple[str, Callable[[], bytes]]],
    reading: Reading,
    skip: Callable[[int], bool],
) -> Iterator[tuple[int, Block]]:
    spec = reading.spec
    assert spec.size is not None
    assert spec.color is not None
    assert spec.resize is not None
    number, start = 0, 0
    names: list[str] = []
    images: list[NDArray[np.uint8]] = []

    def done() -> Block:
        return Block(start, pixels.as_tensor(np.stack(images), spec), {}, tuple(names))

    for name, read in members:
        names.append(name)
        if not skip(number):
            try:
                image = pixels.open_image(_bytes(path, name, read))
                images.append(pixels.decode_pixels(image, spec))
            except pixels.BadImage as error:
                raise BadData(f"{path}, {name}: {error}") from None
        if len(names) == reading.rows:
            if images:
                yield number, done()
            number, start = number + 1, start + len(names)
            names, images = [], []
    if images:
        yield number, done()
