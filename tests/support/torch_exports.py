"""Makes many exports to ONNX in one process faster."""

import functools

from torch.onnx._internal.exporter import _registration


def read_operators_once() -> None:
    """Let torch keep its table of operators.

    It reads the sources of a thousand operators anew for each export, which takes most of the time
    that the export of a small network takes. The table is the same each time.
    """
    registry = _registration.ONNXRegistry
    if not hasattr(registry.from_torchlib, "cache_info"):
        registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))
