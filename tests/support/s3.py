"""A real S3 server on loopback, in a process of its own: moto's."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Bucket:
    """A bucket used as a models folder; files can be added and deleted."""

    def __init__(self, endpoint: str, name: str) -> None:
        self.endpoint, self.name, self.url = endpoint, name, f"s3://{name}/models"
        self.environment = {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint}
        httpx.put(f"{endpoint}/{name}", headers=_SIGNED).raise_for_status()

    def put(self, key: str, content: bytes) -> None:
        """Write an object below the models folder."""
        path = f"{self.endpoint}/{self.name}/models/{key}"
        httpx.put(path, content=content, headers=_SIGNED).raise_for_status()

    def delete(self, key: str) -> None:
        """Delete an object."""
        path = f"{self.endpoint}/{self.name}/models/{key}"
        httpx.delete(path, headers=_SIGNED).raise_for_status()

    def publish(self, folder: Path) -> None:
        """Copy models/NAME/VERSION, its model.json last, as an uploader must."""
        base = folder.parent.parent
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda each: each.name == "model.json"):
            self.put(str(path.relative_to(base)), path.read_bytes())


_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The server's address while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(address)
                break
            assert process.poll() is None, "moto's server has ended"
            assert time.monotonic() < deadline, "moto's server does not start"
            time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()
