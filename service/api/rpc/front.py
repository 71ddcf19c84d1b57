"""The Open Inference Protocol V2 over gRPC. Every call goes through the HTTP protocol's routes.

Inference calls enter the same scoring lane as HTTP requests. So rows of both share batches, and
keys, limits, deadlines, metrics, traces and the log work as for the HTTP route. All other calls
are sent to the ASGI application.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from functools import lru_cache, partial
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

import grpc
import orjson
from google.protobuf import descriptor_pool, json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.api.content import LARGE_BYTES
from service.api.edge.asgi import Edge
from service.api.edge.bodies import Held
from service.api.edge.errors import Problem
from service.api.edge.known_headers import Head
from service.api.edge.request import Response
from service.api.oip.request import HEADER_LENGTH
from service.api.rpc import messages
from service.api.rpc import open_inference_pb2 as pb
from service.api.rpc.gather import Gather
from service.wire.faults import Malformed, TooLarge

SERVICE = "inference.GRPCInferenceService"
_FORWARDED = ("authorization", "x-api-key", "x-request-id", "traceparent", "tracestate")
"""Metadata keys that are passed on as HTTP headers."""
_REPEATED = {b"authorization", b"x-api-key"}
"""Headers whose value a client repeats in every call."""
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
_MAX_PENDING = 20_000
"""The most calls that the library holds before this service takes them.

With its own 1,000, a client that made and cancelled thousands of calls at once had calls of others
cancelled, too.
"""
_MAX_STREAM_IN_FLIGHT = 64
"""The most requests of one stream in progress; the next is read when one of them is answered."""
T = TypeVar("T")
Context: TypeAlias = Any
"""A grpc.aio.ServicerContext; the library has no type hints."""


class Refused(Exception):
    """A call fails: it is answered with a status instead of a message."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.code = _CODES.get(status, grpc.StatusCode.INTERNAL)


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
        self._edge, self._ready, self._gather = edge, ready, Gather()
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
        unary: dict[str, tuple[Callable[..., Awaitable[Any]], Any]] = {
            "ServerLive": (self._server_live, pb.ServerLiveRequest),
            "ServerReady": (self._server_ready, pb.ServerReadyRequest),
            "ServerMetadata": (self._server_metadata, pb.ServerMetadataRequest),
            "ModelReady": (self._model_ready, pb.ModelReadyRequest),
            "ModelMetadata": (self._model_metadata, pb.ModelMetadataRequest),
            "ModelConfig": (self._model_config, pb.ModelConfigRequest),
            "ModelStatistics": (self._model_statistics, pb.ModelStatisticsRequest),
            "RepositoryIndex": (self._index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": (self._load, pb.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (self._unload, pb.RepositoryModelUnloadRequest),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                _answering(method), kind.FromString, _serialized
            )
            for name, (method, kind) in unary.items()
        }
        # Messages of inference stay bytes until their size is known, and large ones are read and
        # written in a thread.
        handlers["ModelInfer"] = grpc.unary_unary_rpc_method_handler(_answering(self._model_infer))
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(_Health(ready), self._server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
        reflection.enable_server_reflection(
            (*names, reflection.SERVICE_NAME), self._server, pool=_Pool(pb.POOL)
        )

    async def start(self, host: str, port: int) -> int:
        """Start listening. Returns the port, which matters for port 0. Raises OSError if taken."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"--grpc-port {port}: cannot listen on {address}: {error}; choose another port, or "
                "end the process that uses it"
            ) from None
        await self._server.start()
        return int(bound)

    async def stop(self, *, seconds: float) -> None:
        """Accept no new calls, and give running calls `seconds` to end."""
        await self._server.stop(seconds)

    # -- inference

    async def _model_infer(self, message: bytes, context: Context) -> bytes:
        with self._held(message):
            answer = await self._scored(await self._read(message), _headers(context))
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
            raise Refused(status, _detail(content))
        return content, int(dict(more)[HEADER_LENGTH])

    async def _stream(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answer the requests of a stream in order. A failing one gets an error; others go on."""
        headers = _headers(context)
        running: asyncio.Queue[asyncio.Task[bytes] | None]
        running = asyncio.Queue(_MAX_STREAM_IN_FLIGHT)

        async def one(message: bytes) -> bytes:
            try:
                with self._held(message):
                    answer = await self._scored(await self._read(message), headers)
            except (Refused, Malformed, TooLarge) as error:
                failed = pb.ModelStreamInferResponse(error_message=str(error))
                with contextlib.suppress(Malformed, TooLarge):
                    failed.infer_response.id = messages.parsed(message).id
                return _serialized(failed)
            return await _off_loop(len(answer[0]), messages.streamed, *answer)

        async def read() -> None:
            try:
                async for message in requests:
                    await running.put(asyncio.create_task(one(message)))
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

    # -- the other calls

    async def _server_live(self, _request: Any, context: Context) -> pb.ServerLiveResponse:
        status, _ = await self._ask("GET", "/v2/health/live", context)
        return pb.ServerLiveResponse(live=status == 200)

    async def _server_ready(self, _request: Any, context: Context) -> pb.ServerReadyResponse:
        status, _ = await self._ask("GET", "/v2/health/ready", context)
        return pb.ServerReadyResponse(ready=status == 200)

    async def _server_metadata(self, _request: Any, context: Context) -> pb.ServerMetadataResponse:
        found = await self._document("GET", "/v2", context)
        return pb.ServerMetadataResponse(
            name=found["name"], version=found["version"], extensions=found["extensions"]
        )

    async def _model_ready(self, request: Any, context: Context) -> pb.ModelReadyResponse:
        path = messages.model_path(request.name, request.version) + "/ready"
        status, _ = await self._ask("GET", path, context)
        return pb.ModelReadyResponse(ready=status == 200)

    async def _model_metadata(self, request: Any, context: Context) -> pb.ModelMetadataResponse:
        found = await self._document(
            "GET", messages.model_path(request.name, request.version), context
        )
        answer = pb.ModelMetadataResponse(
            name=found["name"], versions=found["versions"], platform=found["platform"]
        )
        for name in ("inputs", "outputs"):
            for each in found[name]:
                tensors = getattr(answer, name)
                tensors.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        return answer

    async def _model_config(self, request: Any, context: Context) -> pb.ModelConfigResponse:
        path = messages.model_path(request.name, request.version) + "/config"
        found = await self._document("GET", path, context)
        answer = pb.ModelConfigResponse()
        config = answer.config
        config.name, config.platform = found["name"], found.get("platform", "")
        config.backend = found.get("backend", "")
        config.max_batch_size = found.get("max_batch_size", 0)
        for name in ("input", "output"):
            for each in found.get(name, ()):
                getattr(config, name).add(
                    name=each["name"],
                    data_type=_TRITON_TYPES.get(each["data_type"], 0),
                    dims=each["dims"],
                )
        return answer

    async def _model_statistics(self, request: Any, context: Context) -> Any:
        path = messages.model_path(request.name, request.version) if request.name else "/v2/models"
        found = await self._document("GET", path + "/stats", context)
        return json_format.ParseDict(found, pb.ModelStatisticsResponse())

    async def _index(self, request: Any, context: Context) -> pb.RepositoryIndexResponse:
        body = orjson.dumps({"ready": request.ready})
        found = await self._document("POST", "/v2/repository/index", context, body)
        answer = pb.RepositoryIndexResponse()
        for each in found:
            answer.models.add(
                name=each["name"],
                version=str(each.get("version", "")),
                state=each.get("state", ""),
                reason=each.get("reason", ""),
            )
        return answer

    async def _load(self, request: Any, context: Context) -> pb.RepositoryModelLoadResponse:
        await self._order(request.model_name, "load", context)
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, context: Context) -> pb.RepositoryModelUnloadResponse:
        await self._order(request.model_name, "unload", context)
        return pb.RepositoryModelUnloadResponse()

    async def _order(self, model: str, verb: str, context: Context) -> None:
        path = f"/v2/repository/models/{quote(model, safe='')}/{verb}"
        status, content = await self._ask("POST", path, context, b"{}")
        if status != 200:
            raise Refused(status, _detail(content))

    async def _document(self, method: str, path: str, context: Context, body: bytes = b"") -> Any:
        status, content = await self._ask(method, path, context, body)
        if status != 200:
            raise Refused(status, _detail(content))
        return orjson.loads(content)

    async def _ask(
        self, method: str, path: str, context: Context, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Send an HTTP request to the ASGI application. Returns (status, body)."""
        headers = [*_headers(context), (b"host", b"grpc"), (b"content-length", b"%d" % len(body))]
        if body:
            headers.append((b"content-type", b"application/json"))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
        }
        sent: list[bytes] = []
        status = 500
        is_read = False

        async def receive() -> MutableMapping[str, Any]:
            nonlocal is_read
            if is_read:
                await asyncio.get_running_loop().create_future()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent.append(message.get("body", b""))

        await self._edge(scope, receive, send)
        return status, b"".join(sent)


class _Pool:
    """The protobuf descriptors of this service and of all others, for gRPC reflection."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def find(*wanted: Any) -> Any:
            try:
                return getattr(self._own, name)(*wanted)
            except KeyError:
                return getattr(descriptor_pool.Default(), name)(*wanted)

        return find


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1: SERVING while the service is ready."""

    def __init__(self, ready: Callable[[], str | None]) -> None:
        self._ready = ready

    def _status(self) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        return states(status=states.SERVING if self._ready() is None else states.NOT_SERVING)

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802 - gRPC's name
        """Return the state of the service; NOT_FOUND for any other service name."""
        if request.service not in ("", SERVICE):
            await context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"no service '{request.service[:80]}'; expected {SERVICE}",
            )
        return self._status()

    async def Watch(self, request: Any, _context: Context) -> AsyncIterator[Any]:  # noqa: N802
        """Yield the state now, and again whenever it has changed; it is checked once a second."""
        unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        last = None
        while True:
            found = self._status()
            if request.service not in ("", SERVICE):
                found = health_pb2.HealthCheckResponse(status=unknown)
            if found != last:
                yield found
                last = found
            await asyncio.sleep(1)


def _answering(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
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


def _headers(context: Context) -> tuple[tuple[bytes, bytes], ...]:
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


def _detail(content: bytes) -> str:
    """The message of a problem."""
    try:
        return str(orjson.loads(content)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return content[:200].decode("latin-1")


_TRITON_TYPES = {
    name: number
    for number, name in enumerate(
        [
            "TYPE_INVALID",
            "TYPE_BOOL",
            "TYPE_UINT8",
            "TYPE_UINT16",
            "TYPE_UINT32",
            "TYPE_UINT64",
            "TYPE_INT8",
            "TYPE_INT16",
            "TYPE_INT32",
            "TYPE_INT64",
            "TYPE_FP16",
            "TYPE_FP32",
            "TYPE_FP64",
            "TYPE_STRING",
            "TYPE_BF16",
        ]
    )
}
