"""Serves the console's files at `/`, `/docs` and `/console/…`.

The files are read once. Their headers let the page load nothing from other hosts.
"""

import hashlib
import mimetypes
from pathlib import Path, PurePosixPath

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from service.api.edge.errors import Problem

FOLDER = Path(__file__).parents[1] / "console"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}


class _File:
    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        self.headers = {
            **SECURITY_HEADERS,
            "content-type": _TYPES.get(path.suffix, guessed),
            "cache-control": "no-cache",
            "etag": f'"{hashlib.sha256(self.content).hexdigest()[:32]}"',
        }


def router(folder: Path = FOLDER) -> APIRouter:
    """Make the routes GET /, /docs and /console/{path}.

    folder: the console's files, read now. Files that are added later are not served.
    """
    routes = APIRouter(include_in_schema=False)
    files = {
        str(PurePosixPath(path.relative_to(folder))): _File(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in _TYPES
    }

    @routes.get("/")
    async def index(request: Request) -> Response:
        # KServe's V1 client asks here whether the service is alive, and accepts any type. Browsers
        # name HTML.
        if "text/html" in request.headers.get("accept", ""):
            answer = _answer(files["index.html"], request)
        else:
            answer = JSONResponse({"status": "alive"})
        answer.headers["vary"] = "Accept"
        return answer

    @routes.get("/docs")
    async def docs(request: Request) -> Response:
        return _answer(files["docs.html"], request)

    @routes.get("/console/{path:path}")
    async def file(path: str, request: Request) -> Response:
        if path not in files:
            raise Problem("not-found", f"the console has no file '{path[:80]}'; use /console")
        return _answer(files[path], request)

    return routes


def _answer(file: _File, request: Request) -> Response:
    if request.headers.get("if-none-match") == file.headers["etag"]:
        return Response(status_code=304, headers=file.headers)
    return Response(file.content, headers=file.headers)
