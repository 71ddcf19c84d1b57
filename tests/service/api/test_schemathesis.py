"""Thousands of requests made from /openapi.json: no 500, no answer that it does not
describe, no malformed request accepted.
"""

import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT, running
from tests.support.small_models import publish_model

# Unloading the one model would leave nothing to test.
UNLOAD = r"/v2/repository/models/\{model\}/(un)?load"


def test_every_route_keeps_to_its_own_description(tmp_path):
    publish_model(tmp_path / "models")
    with running(tmp_path / "models", max_body_mib=4) as server:
        done = subprocess.run(
            [
                Path(sys.executable).parent / "schemathesis",
                "--config-file",
                ROOT / "tests/service/api/schemathesis.toml",
                "run",
                f"{server.url}/openapi.json",
                "--checks",
                "all",
                "--phases",
                "examples,coverage,fuzzing,stateful",
                "--max-examples",
                "8",
                "--seed",
                "1",
                "--exclude-path-regex",
                UNLOAD,
                "--warnings",
                "off",
                "--no-color",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        assert server.process.poll() is None
        assert "Traceback" not in server.log
