"""Builds the FastAPI application of all routes that do not score, with one format for errors."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware, GZipResponder, IdentityResponder
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from service.api.edge.errors import PROBLEM_JSON, WITH_ERROR, Problem, kinds, problem_of
from service.api.edge.known_headers import accepts_gzip

logger = logging.getLogger(__name__)

_MIN_COMPRESSED_BYTES = 1024
"""A shorter answer is never compressed."""
_PREFIXES = {"open inference protocol": "oip_", "other servers' protocols": "other_"}
"""Prefixes for the operation ids of other protocols, which would equal ours otherwise."""
_BY_STATUS = {404: "not-found", 405: "method-not-allowed", 415: "unsupported-media-type"}


def application(
    *,
    routers: Iterable[APIRouter],
    version: str,
    first: Callable[[Request], Awaitable[None]] | None = None,
) -> FastAPI:
    """Build the application of these routes. Errors are answered as problems (RFC 9457).

    version: of the service, for /openapi.json. first: awaited before every route.
    A trailing slash is not redirected, since the location would contain the client's Host header.
    """
    app = FastAPI(
        title="Priordial",
        version=version,
        summary="Inference with adjustable class priors",
        openapi_url=None,  # `openapi.document` adds this route
        docs_url=None,  # the console serves this page, without files from other hosts
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[] if first is None else [Depends(first)],
        generate_unique_id_function=_operation_id,
    )
    app.state.all_routes = []
    for each in routers:
        app.include_router(each)
        app.state.all_routes += each.routes
    app.add_middleware(_Compressing, minimum_size=_MIN_COMPRESSED_BYTES)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    expected_errors: list[type[Exception]] = [Problem, *kinds()]
    # Each class has a handler: one for Exception would also log every error with a traceback.
    for expected in expected_errors:
        app.add_exception_handler(expected, _any)
    app.add_exception_handler(Exception, _any)
    for route in app.routes:  # FastAPI prepares its routes now, not when the first request waits
        route.matches({"type": "http", "path": "/", "method": "GET"})
    return app


def _operation_id(route: APIRoute) -> str:
    """The name of an operation in /openapi.json, which becomes a function of generated clients."""
    return _PREFIXES.get(str(route.tags[0]) if route.tags else "", "") + route.name


class _Compressing(GZipMiddleware):
    """Compresses long answers, except those of the Open Inference Protocol.

    Triton's asyncio client claims to accept gzip but does not decompress it.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on. Its answer is compressed if its client accepts gzip, except under /v2.

        Starlette would only look for the word gzip, which `gzip;q=0` contains, too.
        """
        if scope["type"] != "http" or scope["path"].startswith("/v2"):
            await self.app(scope, receive, send)
        elif accepts_gzip(scope["headers"]):
            gzip = _Gzip(self.app, self.minimum_size, compresslevel=1)
            gzip.takes_chunks = scope.get("http_version") != "1.0"
            await gzip(scope, receive, send)
        else:
            # The same scope, not a copy: the edge reads the route from it that FastAPI finds.
            await IdentityResponder(self.app, self.minimum_size)(scope, receive, send)


class _Gzip(GZipResponder):
    """Compresses long parts in the event loop's own threads; Starlette would start others.

    The loop's threads exist already, so this also works when the system allows no more.
    """

    takes_chunks = True
    """Whether the client reads chunks. An answer in parts has no length once it is compressed."""
    _in_parts = False

    async def apply_compression(self, body: bytes, *, more_body: bool) -> bytes:
        """Compress one part of an answer."""
        self._in_parts = self._in_parts or more_body
        if self._in_parts and not self.takes_chunks:
            return body
        if len(body) < self.thread_minimum_size:
            return self._compress_body(body, more_body)
        return await asyncio.to_thread(self._compress_body, body, more_body)


def answer(request: Request, problem: Problem) -> Response:
    """Make the response for a problem, with the member `error` where the protocol has it."""
    with_error = _path(request).startswith(WITH_ERROR)
    return Response(
        problem.body(with_error=with_error),
        status_code=problem.status,
        headers=problem.headers,
        media_type="application/json" if with_error else PROBLEM_JSON,
    )


def _path(request: Request) -> str:
    """The path as the routes see it, without a proxy's prefix."""
    path: str = request.scope["path"]
    return path.removeprefix(request.scope.get("root_path", ""))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [
        {
            "field": ".".join(map(str, item["loc"][1:])) or str(item["loc"][0]),
            "message": item["msg"].removeprefix("Value error, "),
        }
        for item in error.errors()
    ]
    malformed = any(item["type"] == "json_invalid" for item in error.errors())
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in found[:5])
    return answer(request, Problem("malformed" if malformed else "invalid", detail, errors=found))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, "malformed")
    methods = ", ".join(_methods_here(request)) if kind == "method-not-allowed" else ""
    detail = {
        "not-found": f"there is no route {_path(request)[:200]}; /docs lists them all",
        "method-not-allowed": (
            f"{request.method} is not allowed at {_path(request)[:200]}; "
            f"use {methods or 'a method that /docs lists'}"
        ),
    }.get(kind, str(error.detail))
    headers = error.headers
    if kind == "method-not-allowed":
        headers = {"Allow": methods}
    return answer(request, Problem(kind, detail, headers=headers))


def _methods_here(request: Request) -> list[str]:
    """Every method that the path allows: each route has only one, so all routes are asked."""
    methods: set[str] = set()
    for route in request.app.state.all_routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


async def _any(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.kind == "internal":
        logger.error(
            "request %s got status 500; report this with the traceback",
            request.scope.get("state", {}).get("request_id"),
            exc_info=error,
        )
    return answer(request, problem)
