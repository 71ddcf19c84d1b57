"""The Open Inference Protocol V2 over gRPC. Every call goes through the HTTP protocol's routes.

Inference calls enter the same scoring lane as HTTP requests. So rows of both share batches, and
keys, limits, deadlines, metrics, traces and the log work as for the HTTP route. `Management`
answers all other calls.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from functools import lru_cache, partial
from typing import Any, TypeVar

import grpc

from service.api.content import LARGE_BYTES
from service.api.edge.asgi import Edge
from service.api.edge.bodies import Held
from service.api.edge.errors import Problem
from service.api.edge.known_headers import Head
from service.api.edge.request import Response
from service.api.oip.request import HEADER_LENGTH
from service.api.rpc import messages
from service.api.rpc.calls import Context, Refused, answering, detail_of, headers_of
from service.api.rpc.gather import Gather
from service.api.rpc.management import Management
from service.api.rpc.standard import add_standard_services
from service.process.machine import PortTaken
from service.wire.faults import Malformed, TooLarge

SERVICE = "inference.GRPCInferenceService"
_REPEATED = {b"authorization", b"x-api-key"}
"""Headers whose value a client repeats in every call."""
_MAX_PENDING = 20_000
"""The most calls that the library holds before this service takes them.

With its own 1,000, a client that made and cancelled thousands of calls at once had calls of others
cancelled, too.
"""
_MAX_STREAM_IN_FLIGHT = 64
"""The most requests of one stream in progress; the next is read when one of them is answered."""
T = TypeVar("T")


class Call:
    """The connection of a call, which knows whether the client has left."""

    __slots__ = ("disconnected",)

    def __init__(self) -> None:
        self.disconnected = False


class Front:
    """A gRPC server on the running event loop."""

    def __init__(
        self,
        edge: Edge,
        *,
        ready: Callable[[], str | None],
        max_request_bytes: int,
        max_answer_bytes: int,
        shares_port: bool,
    ) -> None:
        """Make a server on top of the HTTP edge.

        ready: returns why requests should not be sent here, or None.
        max_request_bytes: the most bytes of a request. The library puts its parts together on the
        event loop. max_answer_bytes: the most bytes of an answer.
        shares_port: let the other workers of this service listen on the same port.
        """
        self._edge, self._gather = edge, Gather()
        self._requests = messages.Requests()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_request_bytes),
                ("grpc.max_send_message_length", max_answer_bytes),
                ("grpc.so_reuseport", int(shares_port)),
                ("grpc.server.max_pending_requests", _MAX_PENDING),
                ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
            ]
        )
        management = Management(edge)
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                answering(method), kind.FromString, _serialized
            )
            for name, (method, kind) in management.methods().items()
        }
        for name, refuse in management.unserved().items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(answering(refuse))
        # Messages of inference stay bytes until their size is known, and large ones are read and
        # written in a thread.
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(answering(self._model_infer))
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        add_standard_services(self._server, service=SERVICE, ready=ready)

    async def start(self, host: str, port: int) -> int:
        """Start listening. Returns the port, which matters for port 0. Raises PortTaken."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            reason = OSError(errno.EADDRINUSE, f"{error}".partition(";")[0])
            raise PortTaken(host, port, reason, flag="--grpc-port") from None
        await self._server.start()
        return int(bound)

    async def stop(self, *, seconds: float) -> None:
        """Accept no new calls, and give running calls `seconds` to end."""
        await self._server.stop(seconds)

    async def _model_infer(self, message: bytes, context: Context) -> bytes:
        with self._held(message):
            answer = await self._scored(await self._read(message), headers_of(context))
        return await _off_loop(len(answer[0]), messages.response_of, *answer)

    def _held(self, message: bytes) -> Held:
        """Hold the room of a large message; gRPC has already received it. Raises Refused."""
        held = self._edge.lane.room.held()
        if len(message) > LARGE_BYTES:
            try:
                held.add(len(message))
            except Problem as error:
                raise Refused(error.status, error.detail) from None
        return held

    async def _read(self, message: bytes) -> messages.HttpRequest:
        """Translate a message to an HTTP request."""
        found = self._requests.find(message)
        if found is None:
            found = await _off_loop(len(message), messages.http_request, message)
            self._requests.learn(message, found)
        return found

    async def _scored(
        self, request: messages.HttpRequest, headers: tuple[tuple[bytes, bytes], ...]
    ) -> tuple[bytes, int]:
        """Queue a request in the scoring lane, and wait for its answer.

        Returns (the body, the length of the JSON header in it).
        """
        path, body, header_length = request
        lane = self._edge.lane
        match = lane.match(path)
        if match is None:
            raise Refused(404, f"there is no model at '{path[:80]}'; RepositoryIndex lists them")
        head = _head(headers, header_length)
        answered: asyncio.Future[Response | None] = asyncio.get_running_loop().create_future()
        call = Call()

        def send(response: Response | None) -> None:
            if not answered.done():
                answered.set_result(response)

        self._gather.add(
            partial(lane.begin, match, head, query=b"", body=body, connection=call, send=send)
        )
        try:
            response = await answered
        finally:
            call.disconnected = True
        if response is None:
            raise Refused(499, "the client has left")
        status, _, content, _, more = response
        if status != 200:
            raise Refused(status, detail_of(content))
        return content, int(dict(more)[HEADER_LENGTH])

    async def _stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answer the requests of a stream in order. A failing one gets an error; others go on."""
        headers = headers_of(context)
        running: asyncio.Queue[asyncio.Task[bytes] | None]
        running = asyncio.Queue(_MAX_STREAM_IN_FLIGHT)

        async def one(message: bytes) -> bytes:
            try:
                with self._held(message):
                    answer = await self._scored(await self._read(message), headers)
            except (Refused, Malformed, TooLarge) as error:
                return messages.stream_error(message, str(error))
            return await _off_loop(len(answer[0]), messages.streamed, *answer)

        async def read() -> None:
            try:
                async for message in requests:
                    task = asyncio.create_task(one(message))
                    try:
                        await running.put(task)
                    except asyncio.CancelledError:
                        task.cancel()  # the client left while there was no room for its answer
                        raise
            finally:
                await running.put(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await running.get()) is not None:
                yield await task
        finally:
            reader.cancel()
            while not running.empty():
                left = running.get_nowait()
                if left is not None:
                    left.cancel()


async def _off_loop(size: int, call: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a call that works on `size` bytes, in a thread if they are many."""
    if size <= LARGE_BYTES:
        return call(*arguments)
    return await asyncio.to_thread(call, *arguments)


def _serialized(message: Any) -> bytes:
    found: bytes = message.SerializeToString()
    return found


@lru_cache(maxsize=256)
def _kept_head(headers: tuple[tuple[bytes, bytes], ...], header_length: int) -> Head:
    return Head([*headers, (HEADER_LENGTH, b"%d" % header_length)], 0)


def _head(headers: tuple[tuple[bytes, bytes], ...], header_length: int) -> Head:
    """The head of a request, cached since clients repeat it."""
    if any(name not in _REPEATED for name, _ in headers):
        return Head([*headers, (HEADER_LENGTH, b"%d" % header_length)], 0)
    return _kept_head(headers, header_length)
