"""No byte of a table, however it is altered, ends the process.

pyarrow is C++ code: an exception that its binding does not catch would end this process, so the
altered files are read in another one.
"""

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.server import ROOT

READ_ALL = """
import sys
from service.wire.faults import InvalidInput, Malformed, TooLarge
from service.wire.tables.arrow import read_arrow
from service.wire.tables.parquet import read_parquet

read = {"arrow": read_arrow, "parquet": read_parquet}[sys.argv[1]]
body, refused = sys.stdin.buffer.read(), 0
for at in range(int(sys.argv[2]), len(body)):
    for value in (0, 255, body[at] ^ 1, body[at] ^ 16, body[at] + 1 & 255):
        altered = body[:at] + bytes([value]) + body[at + 1 :]
        try:
            read(altered, None, max_rows=2048, max_bytes=2**22)
        except (InvalidInput, Malformed, TooLarge):
            refused += 1
print(refused)
"""
WORDS = pa.table({"words": [["a b c", "dog"][at % 2] * (at + 1) for at in range(20)]})


def parquet(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def arrow(table, make=pa.ipc.new_stream):
    file = io.BytesIO()
    with make(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


def refused(kind, body, begin):
    """How many files with one altered byte from `begin` on are refused; each is read."""
    command = [sys.executable, "-c", READ_ALL, kind, str(begin)]
    done = subprocess.run(command, input=body, capture_output=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    return int(done.stdout)


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False, "data_page_version": "2.0"}])
def test_altered_metadata_of_a_parquet_file_is_refused_or_read(options):
    body = parquet(WORDS, **options)
    metadata = int.from_bytes(body[-8:-4], "little") + 8
    assert refused("parquet", body, len(body) - metadata) > metadata


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_an_altered_arrow_body_is_refused_or_read(make):
    words = pa.table({"word": pa.array(["a", "b"] * 3).dictionary_encode(), "x": np.zeros(6)})
    body = arrow(words, make)
    assert refused("arrow", body, 0) > len(body)


def test_the_shared_libraries_are_open_before_pyarrow_is_imported():
    program = """
import sys
from service.wire.tables import arrow
arrow._open_shared_libraries()
assert "pyarrow" not in sys.modules
maps = open("/proc/self/maps").read()
print([name for name in arrow._SHARED_LIBRARIES if f"/{name}.so" not in maps])
assert arrow.library().__name__ == "pyarrow"
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
