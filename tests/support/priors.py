"""Model descriptions without a graph, and Priors that follow a store."""

import contextlib
from typing import Any

from service.contract.bundle import Bundle
from service.priors.priors import Priors
from service.priors.store import open_store


def make_bundle(
    *,
    name: str = "pets",
    version: int = 1,
    class_names: tuple[str, ...] = ("cat", "dog", "lynx"),
    class_counts: tuple[float, ...] | None = (100.0, 50.0, 5.0),
    loss_tau: float = 0.0,
    temperature: float = 1.0,
    estimation: dict[str, Any] | None = None,
) -> Bundle:
    return Bundle.model_validate(
        {
            "format_version": 1,
            "name": name,
            "version": version,
            "class_names": list(class_names),
            "class_counts": None if class_counts is None else list(class_counts),
            "loss_tau": loss_tau,
            "temperature": temperature,
            "input": {"name": "x", "kind": "tensor", "shape": [None, 4], "dtype": "float32"},
            "output": {"name": "y", "kind": "logits"},
            "files": {"model.onnx": "0" * 64},
            "estimation": estimation,
        }
    )


@contextlib.asynccontextmanager
async def following(url: str, *, reads: str = "", **options):
    """Priors that follow the store at a URL while the block runs."""
    store = open_store(url, reads=reads)
    priors = Priors(store, **{"poll_seconds": 0.02, **options})
    await priors.start()
    try:
        yield priors
    finally:
        await priors.stop()
