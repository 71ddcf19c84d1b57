"""The arrays of a .npz file, inflated within a limit and never unpickled."""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from service.contract.inputs.uncopied import file_of
from service.wire.faults import Malformed, TooLarge
from service.wire.npy import parse_npy
from service.wire.shown import short

MAX_DIRECTORY_BYTES = 64 * 1024
"""The most bytes of the list of arrays in a .npz file: enough for some hundred arrays."""
_END = struct.Struct("<4s4H2LH")
_LOCATOR_BYTES = 20
_PIECE_BYTES = 2**20
"""Bytes that are inflated at once: copying more would hold the interpreter lock too long."""
_FAULTS = (
    zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, ValueError, EOFError, OSError,
)  # fmt: skip
"""What zipfile raises for bytes that are not a complete archive."""
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def read_npz(body: bytes | bytearray, *, max_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays by name. Raises Malformed or TooLarge.

    max_bytes: the most bytes of all arrays together, inflated.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        for name, held in _members(body, max_bytes):
            if name in found:
                raise Malformed(
                    f"the .npz file has the array {short(name)} twice; give each array its own name"
                )
            try:
                found[name] = parse_npy(held)
            except Malformed as error:
                raise Malformed(f"array {short(name)}: {error}") from None
    except (Malformed, TooLarge):
        raise
    except _FAULTS as error:
        raise Malformed(
            f"the body is not a .npz file: {str(error)[:200]}; send what np.savez writes"
        ) from None
    if not found:
        raise Malformed("the .npz file holds no array; expected at least one")
    return found


def _members(body: bytes | bytearray, max_bytes: int) -> Iterator[tuple[str, bytearray]]:
    _check_directory(body)
    left = max_bytes
    with zipfile.ZipFile(file_of(body)) as file:
        for member in file.infolist():
            if member.compress_type not in _METHODS:
                raise Malformed(
                    f"array {short(member.filename)} is compressed by method "
                    f"{member.compress_type}; expected deflate, as np.savez_compressed writes"
                )
            held = bytearray()
            with file.open(member) as stream:
                while len(held) <= left and (piece := stream.read(_PIECE_BYTES)):
                    held += piece
            left -= len(held)
            if left < 0:
                raise TooLarge(
                    f"the arrays of the .npz file have more than {max_bytes} bytes, the most "
                    "that is accepted: send fewer rows"
                )
            if len(held) != member.file_size:
                raise Malformed(
                    f"array {short(member.filename)} has {len(held)} bytes, and the file says "
                    f"{member.file_size}; send what np.savez writes"
                )
            yield member.filename.removesuffix(".npy"), held


def _check_directory(body: bytes | bytearray) -> None:
    """Refuse a long list of members before any of it is read into memory."""
    if len(body) < _END.size or not body.startswith(b"PK"):
        raise Malformed("the body is not a .npz file; send what np.savez writes")
    signature, *_, size, _, _ = _END.unpack(bytes(body[-_END.size :]))
    if signature != b"PK\5\6":
        raise Malformed(
            "the .npz file is cut off, or has a comment at its end; send the whole file that "
            "np.savez writes"
        )
    locator = -_END.size - _LOCATOR_BYTES
    if body[locator : locator + 4] == b"PK\6\7":
        raise Malformed(
            "the .npz file is in the Zip64 format of files over 4 GiB; send fewer rows, or an "
            "array as .npy"
        )
    if size > MAX_DIRECTORY_BYTES:
        raise TooLarge(
            f"the .npz file's list of arrays has {size} bytes; at most {MAX_DIRECTORY_BYTES} "
            "are accepted"
        )
