"""The folder or URL that models come from: its local copy, and polls for new versions."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

from service.contract.bundle import Bundle
from service.repository.served import ServedModel
from service.settings import Settings
from service.stores.mirror import Mirror, open_mirror
from service.stores.remote import RemoteUnavailable

logger = logging.getLogger(__name__)

URL_POLL_SECONDS = 30.0
"""Seconds between two polls of a URL of models, unless --models-poll-seconds is set."""


class ModelSource:
    """Where models come from. A URL has a local copy, from which models are loaded."""

    def __init__(self, settings: Settings) -> None:
        """Open the source, without reading it. Raises InvalidModelsUrl."""
        self.mirror: Mirror | None = open_mirror(
            settings.models,
            settings.models_cache,
            max_bytes=settings.models_cache_mib * 2**20,
        )
        self.folder = Path(settings.models) if self.mirror is None else self.mirror.folder
        self.poll_seconds = settings.models_poll_seconds or (
            URL_POLL_SECONDS if self.mirror else 0.0
        )
        """Seconds between two polls for new versions; 0: none."""

    def preparing(
        self, prepare: Callable[[Path], Callable[[], ServedModel]]
    ) -> Callable[[Path], Callable[[], ServedModel]]:
        """The function `prepare`, which keeps the files of a copied version while it loads."""
        return prepare if self.mirror is None else self.mirror.loading(prepare)

    async def refresh(self) -> None:
        """Bring the local copy up to date; while the store is away, the existing copy serves."""
        if self.mirror is None:
            return
        try:
            await asyncio.to_thread(self.mirror.refresh)
        except RemoteUnavailable as error:
            logger.warning(
                "cannot look for new versions, so the copied ones keep serving: %s", error
            )

    async def poll(self, load_all: Callable[[], Awaitable[object]]) -> None:
        """Call `load_all` every `poll_seconds`, until cancelled."""
        while True:
            await asyncio.sleep(self.poll_seconds * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                await load_all()
            except Exception:
                logger.exception(
                    "looking for new versions failed; the next poll tries again; report this with "
                    "the traceback"
                )

    def release(self, bundle: Bundle) -> None:
        """Let the local copy of a version go, once it is unloaded."""
        if self.mirror is not None:
            self.mirror.release((bundle.name, bundle.version))
