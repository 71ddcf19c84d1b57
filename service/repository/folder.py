"""The folder of all models: which models and versions it holds."""

import logging
from collections.abc import Iterable
from pathlib import Path

from service.contract.bundle import check_model_name, misplaced, models_of, versions
from service.contract.nearest import did_you_mean
from service.repository.on_demand import UnknownModel, size_of

logger = logging.getLogger(__name__)


class ModelFolder:
    """Reads the folders `NAME/VERSION` again at each call."""

    def __init__(self, path: Path) -> None:
        """path: the folder; it may be missing."""
        self.path = path
        self._told: set[str] = set()

    def names(self) -> list[str]:
        """Return the name of every model that has a version, in order; see `unreadable`."""
        return list(models_of(self.path)[0])

    def unreadable(self) -> dict[str, str]:
        """Return why a model's folder cannot be listed, by the model's name, for each such one."""
        return models_of(self.path)[1]

    def misplaced(self) -> list[str]:
        """Describe each model file outside NAME/VERSION, so that nobody waits for it to be served;
        see `service.contract.bundle.misplaced`.
        """
        return misplaced(self.path)

    def tell_misplaced(self) -> None:
        """Log each model file outside NAME/VERSION, once."""
        found = set(self.misplaced())
        for reason in sorted(found - self._told):
            logger.warning("%s; it is not served: move it, then reload (SIGHUP)", reason)
        self._told = found

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model, oldest first.

        There are none when the model is not there, or its folder cannot be listed.
        """
        try:
            return versions(self.path / name)
        except OSError:
            return []

    def version(self, name: str, version: int) -> Path:
        """Return the folder of a version."""
        return self.path / name / str(version)

    def holds(self, name: str) -> bool:
        """Whether a model of this name, which may come from a client, has a version."""
        try:
            check_model_name(name)
        except ValueError:
            return False
        return bool(self.versions(name))

    def check(self, name: str) -> None:
        """Raise UnknownModel, with the names that are there, unless the model has a version."""
        if not self.holds(name):
            there, unreadable = self.names(), self.unreadable()
            if name in unreadable:
                raise UnknownModel(unreadable[name])
            known = f"expected one of {', '.join(there)}" if there else "it holds no model"
            raise UnknownModel(
                f"no model '{name[:80]}' in the repository; {known}{did_you_mean(name[:80], there)}"
            )

    def loaded_bytes(self, name: str, versions: Iterable[int]) -> int:
        """Estimate the memory that these versions take once loaded, in bytes."""
        return size_of(self.version(name, version) for version in versions)

    def why_lost(self) -> str:
        """Why a folder that held models no longer can; empty while it has an entry."""
        try:
            if any(self.path.iterdir()):
                return ""
            fault = "is empty"
        except OSError as error:
            fault = f"cannot be read: {error.strerror}"
        return (
            f"the models folder '{self.path}' {fault}; the models that were loaded go on "
            "serving, and are lost with a restart: mount or restore the folder, then reload "
            "(SIGHUP). To stop a model, unload it by its name"
        )
