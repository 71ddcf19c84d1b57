"""Checks of settings against this machine: its files, folders and processors."""

from collections.abc import Iterator
from pathlib import Path

from service.contract.extras import absent
from service.contract.nearest import nearest_path
from service.settings.fields import Settings
from service.settings.names import InvalidSetting, flag_of

THREADS_A_PROCESSOR = 16
"""The most threads of a graph call for each processor. With 1,024 on two processors, no model ever
became ready.
"""


def check_paths(settings: Settings) -> None:
    """Raise InvalidSetting when a file or folder that a setting names is missing or unreadable."""
    for name in ("models", "models_cache"):
        if not _is_text(getattr(settings, name)):
            raise InvalidSetting(
                f"{flag_of(name)} is '{getattr(settings, name)}', whose bytes are not text in this "
                "locale; onnxruntime cannot open such a path, so rename the folder, or set LANG to "
                "C.UTF-8"
            )
    try:
        if isinstance(settings.models, Path):
            _check_models(settings.models, may_be_missing=settings.allow_no_models)
    except OSError as error:
        raise InvalidSetting(
            f"--models is '{settings.models}': {error.strerror}; expected a folder that this user "
            "can read"
        ) from None
    try:
        if settings.keys is not None:
            _check_keys(settings.keys)
    except OSError as error:
        raise InvalidSetting(
            f"--keys is '{settings.keys}': {error.strerror}; expected a file that this user can "
            "read"
        ) from None


def _check_models(models: Path, *, may_be_missing: bool) -> None:
    """Raise InvalidSetting, or OSError from the system."""
    if models.exists() and not models.is_dir():
        raise InvalidSetting(f"--models is '{models}'; expected a folder of published models")
    if not models.exists():
        if may_be_missing:
            return
        raise InvalidSetting(
            f"--models is '{models}'; there is no such folder{nearest_path(models)} "
            "(use priordial demo to serve shipped models, --allow-no-models to start without any)"
        )
    next(models.iterdir(), None)  # raises where the folder cannot be listed
    if any(each.is_file() for each in _manifests_of_one(models)):
        raise InvalidSetting(
            f"--models is '{models}', which is one model; expected the folder that holds the "
            "folders of models"
        )


def _check_keys(keys: Path) -> None:
    """Raise InvalidSetting, or OSError from the system."""
    if not keys.exists():
        raise InvalidSetting(
            f"--keys is '{keys}'; there is no such file{nearest_path(keys)} (`priordial key NAME "
            "--append FILE` makes one)"
        )
    if keys.is_dir():
        raise InvalidSetting(f"--keys is '{keys}', which is a folder; expected a file of keys")


def _is_text(path: Path | str | None) -> bool:
    """Whether every byte of a path is text, so that onnxruntime can open it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def check_extras(settings: Settings) -> None:
    """Raise InvalidSetting when a setting needs a library that is not installed."""
    missing = absent("grpc") if settings.grpc_port else None
    if missing is not None:
        raise InvalidSetting(f"--grpc-port is {settings.grpc_port}, but {missing}")


def check_threads(settings: Settings, *, processors: int) -> None:
    """Raise InvalidSetting for a number of threads with which graph calls would never end.

    processors: how many threads of this process can run at the same time.
    """
    most = THREADS_A_PROCESSOR * processors
    if settings.intra_op_threads > most:
        raise InvalidSetting(
            f"--intra-op-threads is {settings.intra_op_threads}; this process may use {processors} "
            f"processors, and threads beyond that make graph calls slower; expected at most {most}"
        )


def _manifests_of_one(folder: Path) -> Iterator[Path]:
    """Manifests in a folder that is a model's or a version's, not the folder of all models."""
    yield folder / "model.json"
    yield from folder.glob("[0-9]*/model.json")
