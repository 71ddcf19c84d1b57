"""The report.json of a model: read as it is, and its sample inputs."""

import base64
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

logger = logging.getLogger(__name__)

MAX_REPORT_BYTES = 16 * 2**20

_PNG = b"\x89PNG\r\n\x1a\n"


def read_report(folder: Path) -> dict[str, Any]:
    """The object in report.json; empty where the file is missing or unusable, which is logged."""
    path = folder / "report.json"
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > MAX_REPORT_BYTES:
            why = f"it is larger than {MAX_REPORT_BYTES} bytes"
        else:
            found = orjson.loads(path.read_bytes())
            orjson.dumps(found)  # raises for what an answer could not hold
            if isinstance(found, dict):
                return found
            why = "it is not a JSON object"
    except OSError as error:
        why = f"it cannot be read: {error.strerror or error}"
    except (ValueError, TypeError) as error:  # the latter for what is nested too deeply
        why = str(error)
    logger.warning("the report %s is not shown: %s; publish the model again", path, why)
    return {}


def sample_pictures(report: dict[str, Any]) -> dict[int, bytes]:
    """The PNG files of a report's samples by number, from 1; anything else is ignored."""
    found = {}
    for number, sample in _samples(report):
        png = sample.get("png")
        with contextlib.suppress(ValueError):
            if isinstance(png, str) and (content := base64.b64decode(png)).startswith(_PNG):
                found[number] = content
    return found


def sample_instance(report: dict[str, Any]) -> Any | None:
    """The first sample as an instance of a JSON request; None where there is none."""
    for _, sample in _samples(report):
        if sample.get("instance") is not None:
            return sample["instance"]
        if isinstance(sample.get("png"), str):
            return {"b64": sample["png"]}
    return None


def _samples(report: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    samples = report.get("samples")
    for number, sample in enumerate(samples if isinstance(samples, list) else [], start=1):
        if isinstance(sample, dict):
            yield number, sample
