"""Chooses which models stay loaded when not all of them fit into memory (`--max-loaded-mib`)."""

import contextlib
import logging
import stat
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

FILE_FACTOR = 2
"""Memory per byte of weights: ONNX Runtime also keeps a copy of those that it packs for speed."""
SESSION_BYTES = 3 * 2**20
"""Memory of a session, its queue and its counters, without the weights, in bytes."""


class UnknownModel(LookupError):
    """No such model or version is loaded; the message lists those that are."""


class ModelRests(UnknownModel):
    """The model is in the folder but not loaded yet: await `load()`, then try again.
    `load()` raises UnknownModel when the model cannot be loaded.
    """

    def __init__(self, name: str, load: Callable[[], Coroutine[Any, Any, None]]) -> None:
        super().__init__(
            f"model '{name}' is not loaded now; the next request that names it loads it"
        )
        self.load = load


class OnDemand:
    """Tracks which models rest (are not loaded), and the sizes and last use of the others."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: how much the loaded models may take together, by `size_of`."""
        self._max_bytes = max_bytes
        self._loaded: OrderedDict[str, int] = OrderedDict()
        self.resting: set[str] = set()

    def used(self, name: str) -> None:
        """Note that a request needs a loaded model."""
        if name in self._loaded:
            self._loaded.move_to_end(name)

    def reserve(self, name: str, size: int) -> None:
        """Count `size` bytes for a model that is about to be loaded."""
        self._loaded[name] = size
        self._loaded.move_to_end(name)

    def let_go(self, *, keep: Iterable[str]) -> list[str]:
        """Choose models to unload, least recently used first, until the others fit the limit.

        keep: models that stay in any case, even if they exceed the limit.
        """
        stay = set(keep)
        left, chosen = sum(self._loaded.values()), []
        for name, size in self._loaded.items():
            if left <= self._max_bytes:
                break
            if name not in stay:
                chosen.append(name)
                left -= size
        for name in chosen:
            del self._loaded[name]
            self.resting.add(name)
            logger.info("model %s is unloaded until a request needs it (--max-loaded-mib)", name)
        return chosen

    def settle(self, name: str, *, is_loaded: bool) -> None:
        """Note how the load or unload of a model ended. A model whose load failed does not rest."""
        self.resting.discard(name)
        if not is_loaded:
            self._loaded.pop(name, None)


def size_of(folders: Iterable[Path]) -> int:
    """An estimate of the memory that the versions in these folders take once loaded, in bytes."""
    return sum(
        SESSION_BYTES + FILE_FACTOR * _bytes_in(folder)
        for folder in folders
        if folder.is_dir()  # else a link that leads nowhere
    )


def _bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder, as far as they can be looked at: the load names the fault."""
    total = 0
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                found = path.stat()
                total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total
