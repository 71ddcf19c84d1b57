"""Finds out which of onnxruntime's execution providers work here, by opening a session."""

import importlib.metadata
import logging

import onnxruntime as ort

logger = logging.getLogger(__name__)

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class ProviderUnavailable(RuntimeError):
    """The requested provider does not work on this machine; the message says what is missing."""


def check_runtime() -> None:
    """Raise ProviderUnavailable when both onnxruntime packages are installed: the last one wins,
    silently.
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
            "onnxruntime and onnxruntime-gpu are both installed, and each overwrites files of the other. "
            "Run: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'priordial[service,gpu]' (or [service,cpu])"
        )


def provider_chain(name: str) -> list[str]:
    """The providers for a session: the named one, and those that may take single nodes."""
    order = {"cpu": ["cpu"], "cuda": ["cuda", "cpu"], "tensorrt": ["tensorrt", "cuda", "cpu"]}
    return [PROVIDERS[each] for each in order[name]]


def resolve_provider(name: str) -> str:
    """`auto` becomes cuda or cpu; others are tried with a tiny session. Raises ProviderUnavailable."""
    if name == "cpu":
        return name
    why = probe(name if name != "auto" else "cuda")
    if why is None:
        return "cuda" if name == "auto" else name
    if name != "auto":
        raise ProviderUnavailable(f"provider {name} does not work here: {why}")
    logger.info("serving on the CPU: %s", why)
    return "cpu"


def probe(name: str) -> str | None:
    """Why a provider does not work on this machine; None when a session really opens on it."""
    if PROVIDERS[name] not in ort.get_available_providers():
        extra = (
            ""
            if name == "cpu"
            else " (install the extra: pip install 'priordial[service,gpu]', without onnxruntime)"
        )
        return f"this onnxruntime was built without {PROVIDERS[name]}{extra}"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(_IDENTITY, options, providers=provider_chain(name))
    except Exception as error:  # noqa: BLE001 - every failure is a reason to report
        return first_line(error)
    if session.get_providers()[0] != PROVIDERS[name]:
        return (
            f"onnxruntime fell back to {session.get_providers()[0]}: there is no usable NVIDIA driver "
            "and device, or the CUDA and cuDNN libraries are missing "
            "(pip install 'priordial[service,cuda]' brings the libraries)"
        )
    return None


# ModelProto: ir_version 10, opset 20, one Identity from x to y, both float32 [1]
_IDENTITY = bytes.fromhex(
    "080a12003a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a001014"
)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class; a runtime adds traces below."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
