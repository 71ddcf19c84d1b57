"""Answers every gRPC call except inference by an HTTP request to the ASGI application."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any
from urllib.parse import quote

import orjson
from google.protobuf import json_format

from service.api.edge.asgi import Edge
from service.api.rpc import messages
from service.api.rpc import open_inference_pb2 as pb
from service.api.rpc.calls import Context, Refused, detail_of, headers_of

_UNSERVED = {
    **{
        f"{kind}SharedMemory{verb}": f"/v2/{kind.lower()}sharedmemory/status"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "/v2/trace/setting",
    "LogSettings": "/v2/logging",
}
"""Calls of Triton's protocol that are not served, and the HTTP route that says why."""


class Management:
    """Answers calls about the server, its models and its repository by the HTTP routes."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def methods(self) -> dict[str, tuple[Callable[..., Awaitable[Any]], Any]]:
        """Return (the method, its kind of request) by the name of the call."""
        return {
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

    def unserved(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """Return a method that refuses each call of Triton's protocol that is not served."""
        return {name: partial(self._refuse, path) for name, path in _UNSERVED.items()}

    async def _refuse(self, path: str, _message: bytes, context: Context) -> bytes:
        """Refuse a call in the words of the HTTP route that stands for it."""
        status, content = await self._ask("GET", path, context)
        raise Refused(405 if status == 404 else status, detail_of(content))

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
        await self._order(request, "load", context)
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, context: Context) -> pb.RepositoryModelUnloadResponse:
        await self._order(request, "unload", context)
        return pb.RepositoryModelUnloadResponse()

    async def _order(self, request: Any, verb: str, context: Context) -> None:
        path = f"/v2/repository/models/{messages.segment(request.model_name)}/{verb}"
        # The route looks at the names only: it takes no value of any of them.
        body = orjson.dumps({"parameters": dict.fromkeys(request.parameters)})
        status, content = await self._ask("POST", path, context, body)
        if status != 200:
            raise Refused(status, detail_of(content))

    async def _document(self, method: str, path: str, context: Context, body: bytes = b"") -> Any:
        status, content = await self._ask(method, path, context, body)
        if status != 200:
            raise Refused(status, detail_of(content))
        return orjson.loads(content)

    async def _ask(
        self, method: str, path: str, context: Context, body: bytes = b""
    ) -> tuple[int, bytes]:
        """Send an HTTP request to the ASGI application. Returns (status, body)."""
        headers = [*headers_of(context), (b"host", b"grpc"), (b"content-length", b"%d" % len(body))]
        if body:
            headers.append((b"content-type", b"application/json"))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": quote(path).encode(),
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
