"""The version of this package, and the extra to install for a missing library."""

import importlib.util

VERSION = "0.1.0"
"""The version of the package; pyproject.toml reads it from here."""

EXTRAS = {
    "serve": (
        "fastapi",
        "httptools",
        "multipart",
        "numpy",
        "onnx",
        "onnxruntime",
        "orjson",
        "PIL",
        "platformdirs",
        "prometheus_client",
        "pydantic",
        "python_multipart",
        "simdjson",
        "sqlalchemy",
        "starlette",
        "uvicorn",
        "uvloop",
    ),
    "postgres": ("psycopg",),
    "traces": ("opentelemetry",),
    "grpc": ("grpc", "grpc_health", "grpc_reflection"),
    "training": (
        "matplotlib",
        "mpl_toolkits",
        "numpy",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "PIL",
        "pyarrow",
        "pydantic",
        "scipy",
        "sklearn",
        "torch",
        "tqdm",
    ),
    "tokenizers": ("tokenizers",),
    "http": ("fsspec",),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "azure": ("adlfs",),
    "hf": ("huggingface_hub",),
    "ray": ("ray",),
    "arrow": ("pyarrow",),
    "zstd": ("backports",),
    "torchvision": ("torchvision",),
    "tensorboard": ("tensorboard",),
}
"""The import names of the libraries that each extra installs, including those that the package
always installs.
"""


def missing_extra(error: ImportError, *, first: str) -> str | None:
    """One line that says how to install the library of this error, or None for any other module.

    first: the extra to name when several install the library.

    >>> missing_extra(ModuleNotFoundError(name="torch"), first="training")
    "torch is not installed. Install it with: pip install 'priordial[training]'"
    """
    library = (error.name or "").partition(".")[0]
    for extra in sorted(EXTRAS, key=lambda name: name != first):
        if library in EXTRAS[extra]:
            return _advice(library, extra)
    return None


def absent(extra: str) -> str | None:
    """One line that says how to install an extra of which a library is missing, or None."""
    for library in EXTRAS[extra]:
        if importlib.util.find_spec(library) is None:
            return _advice(library, extra)
    return None


def _advice(library: str, extra: str) -> str:
    return f"{library} is not installed. Install it with: pip install 'priordial[{extra}]'"
