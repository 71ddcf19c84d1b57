"""A compressed body is restored exactly within its limit; otherwise a problem names the fault."""

import gzip
import time
import tracemalloc
import zlib

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from service.api.edge.bodies import inflated
from service.api.edge.errors import Problem
from service.batching.work import Deadline, DeadlinePassed
from service.wire.faults import TooLarge
from service.wire.json_text import parse_storable

LIMIT = 10**6


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_members_of_a_gzip_body_follow_each_other(parts):
    body = b"".join(map(gzip.compress, parts))
    assert inflated(body, b"gzip", LIMIT) == b"".join(parts)
    assert inflated(body, b" X-GZip ", LIMIT) == b"".join(parts)


def test_a_body_of_many_pieces_and_members_is_read_whole():
    noise = bytes(range(256)) * 2000
    body = gzip.compress(noise, 0) + gzip.compress(b"x" * 300_000) + gzip.compress(b"")
    assert inflated(body, b"gzip", LIMIT) == noise + b"x" * 300_000
    assert inflated(zlib.compress(noise), b"deflate", LIMIT) == noise


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_frames_of_a_zstd_body_follow_each_other(parts):
    body = b"".join(map(zstd.compress, parts))
    assert inflated(body, b"zstd", LIMIT) == b"".join(parts)


LONG_WINDOW = zstd.compress(bytes(2**25), options={zstd.CompressionParameter.window_log: 25})


@pytest.mark.parametrize(
    ("body", "encoding", "kind"),
    [
        (zstd.compress(b"x" * (LIMIT + 1)), b"zstd", "too-large"),
        (zstd.compress(b"x" * LIMIT) + zstd.compress(b"x"), b"zstd", "too-large"),
        (zstd.compress(b"x" * 100)[:-1], b"zstd", "malformed"),
        (zstd.compress(b"x") + b"y", b"zstd", "malformed"),
        (LONG_WINDOW, b"zstd", "malformed"),
        (gzip.compress(b"x" * (LIMIT + 1)), b"gzip", "too-large"),
        (gzip.compress(b"x" * LIMIT) + gzip.compress(b"x"), b"gzip", "too-large"),
        (gzip.compress(b"x")[:-1], b"gzip", "malformed"),
        (gzip.compress(b"x") + b"y", b"gzip", "malformed"),
        (gzip.compress(b"") * 10_001, b"gzip", "malformed"),
        (zlib.compress(b"x") * 2, b"deflate", "malformed"),
        (b"", b"gzip", "malformed"),
        (b"x", b"gzip, gzip", "unsupported-media-type"),
        (b"x", b"br", "unsupported-media-type"),
    ],
)
def test_a_compressed_body_that_is_wrong_is_refused_for_its_fault(body, encoding, kind):
    with pytest.raises(Problem) as refused:
        inflated(body, encoding, LIMIT)
    assert refused.value.kind == kind


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_bomb_costs_no_more_than_its_limit(coding):
    bomb = (gzip if coding == "gzip" else zstd).compress(bytes(64 * 2**20))
    tracemalloc.start()
    with pytest.raises(Problem, match="more than 1000000 bytes"):
        inflated(bomb, coding.encode(), LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 5 * LIMIT
    tracemalloc.stop()


def test_json_of_a_prior_is_measured_before_it_is_decoded():
    with pytest.raises(TooLarge, match="more than 16777216 bytes"):
        parse_storable(b"[" + b"[]," * 5 * 10**6 + b"[]]")


@pytest.mark.parametrize("size", [0, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_a_body_is_inflated_whole_in_pieces(size):
    data = b"x" * size
    for limit in (size, size + 1, 2 * size + 9):
        assert inflated(gzip.compress(data), b"gzip", limit) == data
        assert inflated(zlib.compress(data), b"deflate", limit) == data
        assert (
            inflated(gzip.compress(data) + gzip.compress(b"y"), b"gzip", limit + 1) == data + b"y"
        )
    with pytest.raises(Problem, match="stream"):
        inflated(gzip.compress(data)[:-9], b"gzip", size + 1)


def of_empty_blocks(count):
    """A gzip body that is nearly all work: each five bytes are a stored block of nothing."""
    return gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * count + b"\1\0\0\xff\xff" + bytes(8)


def test_a_body_of_empty_blocks_is_inflated_until_the_deadline_only():
    assert inflated(of_empty_blocks(200_000), b"gzip", LIMIT) == b""
    begun = time.monotonic()
    with pytest.raises(DeadlinePassed):
        inflated(of_empty_blocks(10**6), b"gzip", LIMIT, deadline=Deadline(begun + 0.001))
