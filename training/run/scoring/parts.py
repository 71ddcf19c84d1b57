"""Keeps the answers of a scoring run as part files, from which a stopped run resumes.

The folder `OUT.parts` holds one Parquet file for each finished block, and the facts of the run. A
part file is written under a temporary name and then renamed, so that each one is whole.
"""

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.faults import BadData, RunFailed, WrongUse

if TYPE_CHECKING:
    import pyarrow as pa

RUN_FILE = "run.json"
LOCK_FILE = "lock"
_LOCK_ATTEMPTS = 100
WHOLE = "[0-9]*-[0-9]*.parquet"
"""The names of finished part files."""
STARTED = ".*.parquet.*"
"""The names of files that are being written, the answers and the facts included. A leftover one was
being written when its process ended.
"""

WIDENED = "skip_broken"
"""The only fact that a continued run may change, from false to true: finished blocks stay valid."""
LISTED = 5
"""The most broken rows that are named."""


@dataclass
class Joined:
    """Counts over the answers of all parts."""

    predicted: Counter[int] = field(default_factory=Counter)
    """Rows by the index of the class that they got."""
    changed: int = 0
    """Decisions that differ from those at tau 0."""
    rows: int = 0
    broken: int = 0
    """How many of the rows could not be read."""
    first_broken: list[dict[str, Any]] = field(default_factory=list)
    """File, row and error of the first LISTED of them."""

    def add(self, table: "pa.Table", *, errors: bool) -> None:
        """Count the rows of a part. errors: whether its column `error` is that of broken rows."""
        from pyarrow import compute

        self.rows += table.num_rows
        if errors and "error" in table.column_names:
            there = compute.is_valid(table.column("error"))
            broken = table.filter(there).select(["file", "row", "error"])
            self.broken += broken.num_rows
            self.first_broken += broken.slice(0, LISTED - len(self.first_broken)).to_pylist()
            table = table.filter(compute.invert(there))
        index = table.column("index").to_numpy()
        self.predicted.update(index.tolist())
        self.changed += int((index != table.column("unadjusted_index").to_numpy()).sum())


@dataclass(frozen=True)
class Parts:
    """The part files of one run, in the folder `OUT.parts` beside its output, `out`.

    `out` is never a link: the answers go into the file behind it.
    """

    folder: Path
    out: Path

    @classmethod
    @contextlib.contextmanager
    def begun(cls, out: Path, identity: dict[str, Any]) -> "Iterator[Parts]":
        """Make the folder of parts, or continue that of a stopped run with the same identity.

        The folder is deleted when the `with` block ends, but keeps its finished parts if the block
        raises. Raises WrongUse when the stopped run had other settings or is still running, and
        RunFailed in place of an OSError, also of one that the block raises.
        """
        if out.is_symlink():
            out = out.resolve()
        parts = cls(out.with_name(out.name + ".parts"), out)
        with parts._writing(), parts._locked():
            try:
                parts._begin(identity)
                yield parts
            except BaseException:
                parts._delete(STARTED)
                if not parts.count():
                    parts._end()
                raise
            parts._end()

    def count(self) -> int:
        """The number of finished blocks."""
        return len(list(self.folder.glob(WHOLE)))

    def join(self, *, written: Sequence[str] = (), errors: bool = False) -> Joined:
        """Join the parts to the output file, in order.

        written: columns of strings as a CSV file has them, which become numbers if all of them are.
        errors: whether the answers get the column `error`. Raises WrongUse if there are no parts,
        BadData if every row is broken.
        """
        import pyarrow as pa
        from pyarrow import parquet

        files = sorted(self.folder.glob(WHOLE))
        if not files:
            raise WrongUse("the data holds no rows; expected at least one")
        found = Joined()
        schema = _common([parquet.read_schema(file) for file in files])
        if errors and "error" not in schema.names:
            schema = schema.append(pa.field("error", pa.string()))
        for name in written:
            kind = _kind([parquet.read_table(file, columns=[name]).column(0) for file in files])
            schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
        temporary = self.folder / f".{self.out.name}.{os.getpid()}"
        with parquet.ParquetWriter(temporary, schema) as writer:
            for file in files:
                table = parquet.read_table(file)
                found.add(table, errors=errors)
                writer.write_table(_cast(table, schema))
        if found.broken == found.rows:
            first = found.first_broken[0]
            raise BadData(
                f"none of the {found.rows} rows could be read; the first: {first['error']}"
            )
        temporary.rename(self.out)
        return found

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = self.count()
            then = (
                f"{self.folder} keeps the {kept} finished blocks, and the same command goes on "
                "with the others"
                if kept
                else "make room, or give another --out"
            )
            why = os.strerror(error.errno) if error.errno else str(error)
            raise RunFailed(f"{error.filename or self.out}: {why}; {then}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Make the folder and hold its lock. Raises WrongUse when another process holds it.

        A run that ends deletes its lock file and its folder. A lock on a deleted file keeps nobody
        out, so it is taken again.
        """
        for _ in range(_LOCK_ATTEMPTS):
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as held:
                try:
                    file = held.enter_context((self.folder / LOCK_FILE).open("a+"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    there = (self.folder / LOCK_FILE).stat()
                except BlockingIOError:
                    break
                except FileNotFoundError:
                    continue
                if os.path.samestat(there, os.fstat(file.fileno())):
                    yield
                    return
        raise WrongUse(
            f"{self.folder}: another process is writing these answers; wait until it has finished, "
            "or give another --out"
        )

    def _begin(self, identity: dict[str, Any]) -> None:
        """Write the facts of this run. Raises WrongUse if there are blocks of another one."""
        before = _read(self.folder / RUN_FILE) if self.count() else None
        changed = [] if before is None else _differing(before, identity)
        if changed:
            raise WrongUse(
                f"{self.folder} holds a stopped run with other {' and '.join(changed)}; "
                "delete it to start again"
            )
        self._delete(STARTED)
        if before is None:
            self._delete(WHOLE)  # what is left of a run whose folder was half deleted
        if before != identity:
            temporary = self.folder / f".{RUN_FILE}.parquet.{os.getpid()}"
            temporary.write_text(json.dumps(identity), encoding="utf-8")
            temporary.rename(self.folder / RUN_FILE)

    def _end(self) -> None:
        """Delete the files of the run, the facts first, and the folder if it holds nothing else."""
        for names in (RUN_FILE, STARTED, WHOLE, LOCK_FILE):
            self._delete(names)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _delete(self, names: str) -> None:
        for file in self.folder.glob(names):
            file.unlink(missing_ok=True)


def part_of(folder: Path, source: int, block: int) -> Path:
    """The part file of a block. Names sort in the order of the rows."""
    return folder / f"{source:06d}-{block:08d}.parquet"


def write_part(table: "pa.Table", target: Path) -> None:
    """Write a part file atomically."""
    from pyarrow import parquet

    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    parquet.write_table(table, temporary)
    temporary.rename(target)


def _read(record: Path) -> dict[str, Any] | None:
    """The facts of the run that the folder belongs to; None if there are none."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Name what differs between two runs, with the values where they are short."""
    found = []
    for name, value in now.items():
        other = before.get(name)
        if other == value or (name == WIDENED and not other):
            continue
        plain = isinstance(value, (int, float)) and isinstance(other, (int, float))
        found.append(f"{name} ({other} before, now {value})" if plain else name)
    return found


def _common(schemas: "list[pa.Schema]") -> "pa.Schema":
    """A schema that every part fits; a kept column may have a type of its own in each file.

    Only parts with a broken row have the last column, `error`.
    """
    import pyarrow as pa

    longest = max(schemas, key=len)
    return pa.schema(
        [
            _unified([schema.field(name) for schema in schemas if name in schema.names])
            for name in longest.names
        ]
    )


def _unified(fields: "Sequence[pa.Field]") -> "pa.Field":
    """One field for those of all parts: of the widest type, or strings if there is none."""
    import pyarrow as pa

    try:
        return pa.unify_schemas(
            [pa.schema([field]) for field in set(fields)], promote_options="permissive"
        ).field(0)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        nested = next((field for field in fields if pa.types.is_nested(field.type)), None)
        if nested is not None:
            other = next(field for field in fields if field.type != nested.type)
            raise BadData(
                f"--keep {nested.name}: the column holds {nested.type} in some files and "
                f"{other.type} in others; leave it out, or write the files alike"
            ) from None
        return pa.field(fields[0].name, pa.string())


def _kind(cells: "list[pa.ChunkedArray]") -> "pa.DataType":
    """The type of strings: whole numbers or numbers, if all but the empty ones are; else strings.

    Numbers with leading zeros, such as 007, stay strings.
    """
    import pyarrow as pa
    from pyarrow import compute

    kinds = [pa.int64(), pa.float64()]
    for column in cells:
        there = column.filter(compute.not_equal(column, ""))
        if compute.any(compute.match_substring_regex(there, r"^[+-]?0[0-9]|^\+")).as_py():
            return pa.string()
        while kinds:
            try:
                there.cast(kinds[0])
                break
            except pa.ArrowInvalid:
                kinds.pop(0)
    return kinds[0] if kinds else pa.string()


def _cast(table: "pa.Table", schema: "pa.Schema") -> "pa.Table":
    """Return the table with the schema's columns and types; an empty string becomes a missing
    number.
    """
    import pyarrow as pa
    from pyarrow import compute

    for name in schema.names[table.num_columns :]:
        table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
    for place, wanted in enumerate(schema):
        column = table.column(place)
        if pa.types.is_string(column.type) and not pa.types.is_string(wanted.type):
            empty = compute.equal(column, "")
            column = compute.if_else(empty, pa.scalar(None, pa.string()), column)
            table = table.set_column(place, wanted.name, column)
    return table.cast(schema)
