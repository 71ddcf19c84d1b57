"""A remembered header block is read as the parser read it, or is left to the parser."""

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.api.edge.known_headers import KnownHeads

HEAD = b"host: x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n"
WHOLE = b"POST /predict?tau=1 HTTP/1.1\r\n" + HEAD + b"\r\n{}"


class Parsed:
    """What httptools makes of bytes, which must be one whole request."""

    def __init__(self, data):
        self.url, self.headers, self.body, self.ends, self.begins = b"", [], b"", 0, 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method, self.version = parser.get_method(), parser.get_http_version()
        self.keeps = parser.should_keep_alive()

    def on_message_begin(self):
        self.begins += 1

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        self.headers.append((name.lower(), value))

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.ends += 1


def learned(data=WHOLE):
    heads = KnownHeads()
    heads.learn(data, Parsed(data).headers)
    return heads


def test_a_known_block_serves_other_paths_queries_and_bodies_of_the_same_length():
    heads = learned()
    assert heads.find(WHOLE) is not None
    path, query, head, body = heads.find(b"POST /models/a/predict HTTP/1.1\r\n" + HEAD + b"\r\n[]")
    assert (path, query, body) == (b"/models/a/predict", b"", b"[]")
    assert head.headers == Parsed(WHOLE).headers
    assert (head.content_type, head.accepts_json) == ("application/json", True)


@pytest.mark.parametrize(
    "data",
    [
        WHOLE + b"x",
        WHOLE[:-1],
        WHOLE + WHOLE,
        WHOLE.replace(b"1.1", b"1.0"),
        WHOLE.replace(b"POST", b"PUT"),
        WHOLE.replace(b"/predict", b"/pre%64ict"),
        WHOLE.replace(b"?tau", b"#tau"),
        WHOLE.replace(b"?tau", b" tau"),
        WHOLE.replace(b"host: x", b"host: y"),
        b"\r\n" + WHOLE,
        b"",
    ],
)
def test_anything_else_is_left_to_the_parser(data):
    assert learned().find(data) is None


@pytest.mark.parametrize(
    "line",
    [
        b"x-request-id: 1",
        b"traceparent: 00-0-0-00",
        b"expect: 100-continue",
        b"transfer-encoding: chunked",
        b"upgrade: h2c",
        b"connection: close",
        b"content-length: 2",
        b"x-long: " + b"x" * 3000,
    ],
)
def test_a_block_that_does_not_come_again_or_says_more_than_its_request_is_not_kept(line):
    data = WHOLE.replace(HEAD, HEAD + line + b"\r\n")
    heads = KnownHeads()
    heads.learn(data, [tuple(each.split(b": ")) for each in (HEAD + line).split(b"\r\n")])
    assert heads.find(data) is None


def test_a_few_blocks_are_kept_however_many_come():
    heads = KnownHeads()
    for number in range(2000):
        data = WHOLE.replace(b"host: x", b"host: %d" % number)
        heads.learn(data, Parsed(data).headers)
        assert heads.find(data) is not None
    assert len(heads._blocks) <= 512


@given(
    at=st.integers(0, len(WHOLE)),
    cut=st.integers(0, 4),
    put=st.one_of(
        st.binary(max_size=4),
        st.sampled_from([b"\r\n", b"\n", b" ", b"\t", b"\r\n\r\n", b"?", b"#", b"%"]),
    ),
)
@example(at=19, cut=0, put=b"\x7f")
@example(at=0, cut=0, put=b"\r\n")
def test_what_is_found_is_what_the_parser_would_have_read(at, cut, put):
    data = WHOLE[:at] + put + WHOLE[at + cut :]
    found = learned().find(data)
    if found is None:
        return
    path, query, head, body = found
    parsed = Parsed(data)
    assert (parsed.begins, parsed.ends, parsed.method, parsed.version) == (1, 1, b"POST", "1.1")
    assert parsed.keeps
    assert parsed.url == path + (b"?" + query if query or b"?" in parsed.url else b"")
    assert (parsed.headers, parsed.body) == (head.headers, body)
