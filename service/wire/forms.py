"""A multipart/form-data body → its files and its text fields, in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.wire.arrays import Malformed

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 10_000


@dataclass(frozen=True)
class Form:
    """Files in the order they came in, and (name, text) of the other fields."""

    files: list[bytes]
    fields: list[tuple[str, str]]


def parse_form(content_type: bytes, body: bytes) -> Form:
    """Parse a whole body. A part with a file name or an image type is a file, another is text. Raises Malformed."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Malformed("the multipart content type names no boundary")
    reader = _Reader()
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise Malformed(f"the multipart body cannot be read: {error}") from None
    if not reader.ended:
        raise Malformed("the multipart body ends before its last boundary")
    return Form(
        [part.data for part in reader.parts if part.is_file],
        [(part.name, part.text) for part in reader.parts if not part.is_file],
    )


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    pieces: list[bytes] = field(default_factory=list)

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def is_file(self) -> bool:
        return b"filename" in self._disposition or self.headers.get(
            b"content-type", b""
        ).startswith(b"image/")

    @property
    def name(self) -> str:
        return self._disposition.get(b"name", b"").decode("utf-8", "replace")

    @property
    def text(self) -> str:
        try:
            return self.data.decode()
        except UnicodeDecodeError:
            raise Malformed(f"form field '{self.name[:60]}' is not UTF-8 text") from None

    @property
    def _disposition(self) -> Mapping[bytes, bytes]:
        return parse_options_header(self.headers.get(b"content-disposition", b""))[1]


class _Reader:
    """Gathers what the parser calls out."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.ended = False
        self._name = self._value = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_part_data": lambda data, start, end: self.parts[-1].pieces.append(data[start:end]),
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise Malformed(f"the multipart body has more than {MAX_PARTS} parts")
        self.parts.append(_Part())

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self.parts[-1].headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _end(self) -> None:
        self.ended = True
