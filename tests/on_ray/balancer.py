"""What Ray's HAProxy knows and has answered."""

import contextlib
import re
import socket
import threading
from pathlib import Path

from tests.support.proxied import free_port

_ANSWERED = re.compile(r"/(SERVE_REPLICA_\S+) \S+ (-?\d+) \d+ .* \"POST /predict")
_NAME, _STATUS, _ADDRESS = 1, 17, 73  # columns of "show stat"


class Balancer:
    """The HAProxy of a cluster: its state from its socket, its answers from its log."""

    def __init__(self, folder: Path) -> None:
        """folder: short, for the path of a Unix socket holds 108 characters."""
        self._folder = folder
        self._log = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._log.bind(("127.0.0.1", 0))
        self.answers: list[tuple[str, int]] = []  # (server, HAProxy's status)
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that give this HAProxy files and ports of its own: two would share them."""
        return {
            "RAY_SERVE_HAPROXY_LOG_TARGET": f"127.0.0.1:{self._log.getsockname()[1]}",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self._folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self._folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self._folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self._folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self._folder / "server-state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        }

    def up(self) -> dict[int, str]:
        """The replicas that get requests: their names by port."""
        found = {}
        for path in self._folder.glob("*/admin.sock"):
            for line in self._ask(path, "show stat").splitlines():
                if ",SERVE_REPLICA_" in line:
                    cells = line.split(",")
                    if cells[_STATUS] == "UP":
                        found[int(cells[_ADDRESS].rpartition(":")[2])] = cells[_NAME]
        return found

    def close(self) -> None:
        """Read the log no further."""
        with contextlib.suppress(OSError):
            self._log.shutdown(socket.SHUT_RDWR)
        self._log.close()

    def _ask(self, path: Path, command: str) -> str:
        answer = b""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(10)
            admin.connect(str(path))
            admin.sendall(f"{command}\n".encode())
            while part := admin.recv(65536):
                answer += part
        return answer.decode()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while line := self._log.recv(65536):
                if found := _ANSWERED.search(line.decode(errors="replace")):
                    self.answers.append((found[1], int(found[2])))
