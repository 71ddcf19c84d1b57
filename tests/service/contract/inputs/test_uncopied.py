"""A file over bytes in memory reads like BytesIO, and does not copy a long bytearray."""

import io
import tracemalloc

import pytest

from service.contract.inputs.uncopied import file_of

LONG = bytearray(bytes(range(256)) * 8192)


@pytest.mark.parametrize("data", [bytearray(b"short"), b"bytes", LONG])
def test_it_reads_and_seeks_like_bytesio(data):
    wanted, found = io.BytesIO(data), file_of(data)
    for step in (
        lambda f: f.read(3),
        lambda f: f.seek(-2, io.SEEK_END),
        lambda f: f.read(10),
        lambda f: f.read(1),
        lambda f: f.seek(1),
        lambda f: f.seek(2, io.SEEK_CUR),
        lambda f: f.tell(),
        lambda f: f.readline(),
        lambda f: f.seek(10**8),
        lambda f: f.read(),
        lambda f: f.seek(0),
        lambda f: f.read(),
    ):
        assert step(found) == step(wanted)
    with pytest.raises((ValueError, OSError)):
        found.seek(-1)


def test_a_long_bytearray_is_not_copied():
    tracemalloc.start()
    file_of(LONG).read(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(LONG) // 4
