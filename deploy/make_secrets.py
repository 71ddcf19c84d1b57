"""Makes the secrets of docker-compose.yml in deploy/secrets, and prints the key for the console.

    python3 deploy/make_secrets.py [FOLDER]

It needs Python's standard library only. Existing files are kept.
"""

import secrets
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from service.api.edge.keys import make_key  # noqa: E402 - the checkout must be on the path first

READABLE = 0o644
"""Docker mounts a secret with its file's mode, and the containers do not run as its owner."""
KEYS = {
    "observe_key": ("prometheus", ["observe"]),
    "console_key": ("console", ["predict", "operate"]),
}
"""The file of each API key, with the key's name and roles."""


def main(folder: Path = ROOT / "deploy" / "secrets") -> int:
    """Make the missing files in `folder`, and print the console's key. Returns 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("postgres_password", "grafana_password"):
        _keep(folder / name, secrets.token_hex(24))
    lines = []
    for file, (name, roles) in KEYS.items():
        secret, key = make_key(name, roles)
        if _keep(folder / file, secret):
            lines.append(key.line() + "\n")
    if lines:
        api_keys = folder / "api_keys"
        with api_keys.open("a", encoding="ascii") as keys:
            keys.writelines(lines)
        api_keys.chmod(READABLE)
    sys.stdout.write(f"the key of the console: {(folder / 'console_key').read_text()}\n")
    return 0


def _keep(path: Path, content: str) -> bool:
    """Write a file unless it exists; return whether it was written."""
    if path.exists():
        return False
    path.write_text(content, encoding="ascii")
    path.chmod(READABLE)
    return True


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
