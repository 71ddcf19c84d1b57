"""Splits a multipart/form-data body, in memory, into its files and text fields."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.wire.faults import Malformed, TooLarge

MAX_PARTS = 1_000
MAX_FIELD_BYTES = 4 * 2**20
"""Bytes of one text field: an inline prior of some hundred thousand classes."""
_PIECE_BYTES = 256 * 1024
"""Bytes passed to the parser at a time: copying more would hold the interpreter lock too long."""

logging.getLogger("python_multipart").setLevel(
    logging.ERROR
)  # the parser's warnings quote the body


class Form(NamedTuple):
    """The files in the order of the body, and (name, text) of the other fields."""

    files: list[bytearray]
    fields: list[tuple[str, str]]


def parse_form(content_type: bytes, body: bytes | bytearray) -> Form:
    """Parse a whole body. Raises Malformed or TooLarge.

    A part with a file name or an image type is a file; every other part is text.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Malformed(
            "the multipart content type names no boundary; let the HTTP client set Content-Type"
        )
    reader = _Reader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())  # type: ignore[arg-type]
        for at in range(0, len(body), _PIECE_BYTES):
            parser.write(bytes(body[at : at + _PIECE_BYTES]))
        parser.finalize()
    except (Malformed, TooLarge):
        raise
    except (FormParserError, ValueError) as error:
        raise Malformed(
            f"the multipart body cannot be read: {error}; expected the form that RFC 7578 describes"
        ) from None
    if not reader.ended:
        raise Malformed("the multipart body ends before its last boundary; send it whole")
    return reader.form


class _Reader:
    """Gathers the parts that the parser reports."""

    def __init__(self) -> None:
        self.form, self.ended = Form([], []), False
        self._parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value, self._data = bytearray(), bytearray(), bytearray()

    def callbacks(self) -> Mapping[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_part_data": lambda data, start, end: self._data.extend(data[start:end]),
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Malformed(
                f"the multipart body has more than {MAX_PARTS} parts; send several requests"
            )
        self._headers, self._data = {}, bytearray()

    def _header_end(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _part_end(self) -> None:
        options = parse_options_header(self._headers.get(b"content-disposition", b""))[1]
        is_image = self._headers.get(b"content-type", b"").startswith(b"image/")
        if is_image or b"filename" in options:
            self.form.files.append(self._data)
            return
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if len(self._data) > MAX_FIELD_BYTES:
            raise TooLarge(
                f"form field '{name[:60]}' has {len(self._data)} bytes of text; at most "
                f"{MAX_FIELD_BYTES} are accepted; give a file its filename"
            )
        try:
            self.form.fields.append((name, self._data.decode()))
        except UnicodeDecodeError:
            raise Malformed(
                f"form field '{name[:60]}' is not UTF-8 text; encode it as UTF-8, or give a file "
                "its filename"
            ) from None

    def _end(self) -> None:
        self.ended = True
