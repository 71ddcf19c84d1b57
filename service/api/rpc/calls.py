"""One gRPC call: what its metadata says as HTTP headers, and how it fails."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import orjson

from service.wire.faults import Malformed, TooLarge

_FORWARDED = ("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate")
"""Metadata keys that are passed on as HTTP headers."""
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    412: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
Context: TypeAlias = Any
"""A grpc.aio.ServicerContext; the library has no type hints."""


class Refused(Exception):
    """A call fails: it is answered with a status instead of a message."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.code = _CODES.get(status, grpc.StatusCode.INTERNAL)


def answering(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap a method so that an error it raises ends the call with the error's status."""

    async def handle(request: Any, context: Context) -> Any:
        try:
            return await method(request, context)
        except Malformed as error:
            code, detail = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except TooLarge as error:
            code, detail = grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
        except Refused as error:
            code, detail = error.code, str(error)
        # `abort` keeps what it raises in the context. So this frame, and the frames of an error
        # that is handled meanwhile, stay until the garbage collector comes, which is seldom.
        del request
        await context.abort(code, detail)
        raise AssertionError("abort always raises")

    return handle


def headers_of(context: Context) -> tuple[tuple[bytes, bytes], ...]:
    """The HTTP headers that correspond to a call's metadata and deadline."""
    found = []
    for name, value in context.invocation_metadata() or ():
        if name in _FORWARDED:
            found.append((name.encode(), value if isinstance(value, bytes) else value.encode()))
    remaining = context.time_remaining()
    if remaining is not None:
        milliseconds = max(1, min(int(remaining * 1000), 86_400_000))
        found.append((b"x-request-timeout-ms", b"%d" % milliseconds))
    return tuple(found)


def detail_of(content: bytes) -> str:
    """The message of a problem."""
    try:
        return str(orjson.loads(content)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return content[:200].decode("latin-1")
