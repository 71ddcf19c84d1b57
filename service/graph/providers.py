"""Finds out which execution providers of onnxruntime work here, by running a small graph
on each.
"""

import base64
import contextlib
import functools
import importlib.metadata
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from service.graph.reasons import first_line
from service.process import stderr

logger = logging.getLogger(__name__)

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_CAUSE = re.compile(r"Failed to load library.*|CUDA failure.*|cuDNN failure.*|CUDA error.*")
_LIBRARIES = " (pip install 'priordial[service,cuda]' brings the CUDA and cuDNN libraries)"


class ProviderUnavailable(RuntimeError):
    """The requested provider does not work on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Device:
    """The GPU of a session, and how the session uses it.

    number: the GPU's number, as the driver counts. memory_mib: the most memory of one session, in
    MiB; 0 is no limit. tf32: let matrix products and convolutions round their inputs to 10 bits of
    mantissa.
    """

    number: int = 0
    memory_mib: int = 0
    tf32: bool = False

    def options(self) -> dict[str, str]:
        """The provider options of CUDA.

        The memory arena grows by the requested size, not by powers of two, since models and workers
        share the card. cuDNN chooses convolutions by its heuristic: a search would run for each new
        shape.
        """
        made = {
            "device_id": str(self.number),
            "use_tf32": str(int(self.tf32)),
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        if self.memory_mib:
            made["gpu_mem_limit"] = str(self.memory_mib << 20)
        return made


FIRST_DEVICE = Device()


def check_runtime() -> None:
    """Raise ProviderUnavailable when both onnxruntime packages are installed.

    The one that was installed last would silently overwrite files of the other.
    """
    found = []
    for name in _RUNTIMES:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    if len(found) > 1:
        raise ProviderUnavailable(
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites files of the "
            "other. "
            "Run: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && "
            "pip install 'priordial[service,gpu]' (or [service,cpu])"
        )


def provider_chain(name: str, device: Device = FIRST_DEVICE) -> list[Any]:
    """The providers of a session: the named one, and the CPU for nodes that it does not support."""
    if name == "cpu":
        return [PROVIDERS["cpu"]]
    return [(PROVIDERS[name], device.options()), PROVIDERS["cpu"]]


def open_session(
    model: bytes | str, options: ort.SessionOptions, name: str, device: Device = FIRST_DEVICE
) -> ort.InferenceSession:
    """Open a session without onnxruntime's own fallback: a failing call raises, and stays on
    `name`.

    Raises whatever onnxruntime raises.
    """
    session = ort.InferenceSession(
        model, options, providers=provider_chain(name, device), enable_fallback=0
    )
    session.disable_fallback()
    return session


def resolve_provider(name: str, device: Device = FIRST_DEVICE) -> str:
    """Return cuda or cpu for `auto`; a small graph shows whether cuda works.

    Raises ProviderUnavailable when the named provider does not work.
    """
    if name == "cpu":
        return name
    why = probe("cuda", device)
    if why is None:
        return "cuda"
    if name != "auto":
        raise ProviderUnavailable(f"provider {name} does not work here: {why}")
    if PROVIDERS["cuda"] in ort.get_available_providers():
        logger.info("provider auto: serving on the CPU: %s", why)
    else:
        logger.info(
            "provider auto: serving on the CPU; for an NVIDIA GPU, install priordial[service,gpu]"
        )
    return "cpu"


def probe(name: str, device: Device = FIRST_DEVICE) -> str | None:
    """Return why a provider does not work here; None when it computes the right numbers.

    A session can open on CUDA and fail at its first convolution (without cuDNN) or at its first
    kernel (on a GPU for which the package has no code). The test graph therefore has a convolution
    and a matrix product.
    """
    if PROVIDERS[name] not in ort.get_available_providers():
        return (
            f"this onnxruntime was built without {PROVIDERS[name]} "
            "(install the extra: pip install 'priordial[service,gpu]', without onnxruntime)"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 4 if name == "cpu" else 3
    if name == "cuda":
        preload_libraries()
    with _captured_stderr() as said:
        try:
            session = open_session(_PROBE, options, name, device)
            on = session.get_providers()[0]
            if on != PROVIDERS[name]:
                return _fell_back(on, _reason(said()))
            found = session.run(None, {"x": _PROBE_INPUT})[0]
        except Exception as error:  # noqa: BLE001 - every failure is a reason to report
            return _reason(said()) or first_line(error)
    if not np.array_equal(found, _PROBE_OUTPUT):
        return (
            f"{PROVIDERS[name]} computes {found.tolist()}; expected {_PROBE_OUTPUT.tolist()}: "
            "this package has no working kernels for this GPU"
        )
    return None


def _fell_back(on: str, reason: str | None) -> str:
    return f"onnxruntime fell back to {on}: " + (
        reason
        or f"there is no usable NVIDIA driver and device, or libraries are missing{_LIBRARIES}"
    )


@functools.cache
def preload_libraries() -> None:
    """Load the CUDA and cuDNN libraries that the extra `cuda` installed beside Python packages.

    onnxruntime's own search does not find them there. It prints the ones that fail to load on
    standard output, which is kept for the results of commands, so that output is captured.
    """
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(None), contextlib.suppress(Exception):
            ort.preload_dlls()


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """Capture what native code writes to standard error; yields a function that reads it so far.

    onnxruntime reports only there why it cannot load a provider.
    """
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        yield lambda: ""
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def said() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            for line in said().splitlines():
                if "onnxruntime" not in line:
                    stderr.put(line.encode() + b"\n")


def _reason(said: str) -> str | None:
    """The cause in onnxruntime's log: its first error, since later ones follow from it."""
    for line in _ANSI.sub("", said).splitlines():
        if found := _CAUSE.search(line):
            missing = "cannot open shared object file" in line
            return found[0].strip()[:500] + (_LIBRARIES if missing else "")
    return None


_PROBE_INPUT = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
_PROBE_OUTPUT = np.array([[421.0, -78.0, 98.0]], np.float32)
"""Whole numbers below 2048, which every rounding mode of a GPU keeps exactly."""
_PROBE = base64.b64decode(
    "CAoSADqSAgoUCgF4CgZrZXJuZWwSAWMiBENvbnYKDwoBYxIBZiIHRmxhdHRlbgoaCgFmCgZ3ZWlnaHQKBGJpYXMS"
    "AXkiBEdlbW0SBXByb2JlKjgIAQgBCAMIAxABQgZrZXJuZWxKJAAAAAAAAIA/AAAAAAAAgD8AAIA/AACAPwAAAAAA"
    "AIA/AAAAACpACAQIAxABQgZ3ZWlnaHRKMAAAgD8AAAAAAAAAQAAAAEAAAIC/AAAAAAAAQEAAAAAAAACAPwAAgEAA"
    "AIC/AAAAACoYCAMQAUIEYmlhc0oMAACAPwAAAEAAAEBAWhsKAXgSFgoUCAESEAoCCAEKAggBCgIIBAoCCARiEwoB"
    "eRIOCgwIARIICgIIAQoCCANCBAoAEBQ="
)
"""x [1, 1, 4, 4] → Conv → Flatten → Gemm → y [1, 3]. A test builds the graph again and compares."""
