"""Finds out with uvicorn's parser where a stream of requests ends."""

import httptools


class _Reader:
    """Callbacks of the parser: whether a request has begun and has no end yet, whether its headers
    have ended, and whether what follows is well-formed.
    """

    is_open = False
    is_in_body = False
    is_broken = False

    def on_message_begin(self) -> None:
        self.is_open = True

    def on_headers_complete(self) -> None:
        self.is_in_body = True

    def on_message_complete(self) -> None:
        self.is_open = self.is_in_body = False


def ends_whole(stream: bytes) -> bool:
    """Return whether a stream is well-formed and ends with the end of a request."""
    reader = _read(stream)
    return not (reader.is_broken or reader.is_open)


def ends_in_body(stream: bytes) -> bool:
    """Return whether a stream ends, or is no longer well-formed, within the body of a request."""
    return _read(stream).is_in_body


def _read(stream: bytes) -> _Reader:
    """The state after a stream, or where it is no longer well-formed."""
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    try:
        parser.feed_data(stream)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        reader.is_broken = True
    return reader
