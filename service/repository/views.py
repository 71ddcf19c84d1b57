"""Gives other parts of the service read access to the models that serve."""

from collections.abc import Iterator
from typing import Any

from service.batching.batcher import Batcher
from service.contract.bundle import Bundle
from service.priors.recent import LogitReservoir
from service.priors.shift.watch import Served
from service.repository.on_demand import UnknownModel
from service.repository.report import sample_instance
from service.repository.repository import Repository


class ModelViews:
    """Reads the versions that serve at the moment of each call."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def bundles(self) -> list[Bundle]:
        """The newest version of each model, the default model first."""
        repository = self._repository
        newest = [model.bundle for model in repository.newest()]
        first = repository.default_name() if len(newest) == 1 else repository.wanted_default
        return sorted(newest, key=lambda bundle: (bundle.name != first, bundle.name))

    def bundle(self, name: str | None) -> Bundle:
        """The newest version of a model, or of the default model for None. Raises UnknownModel."""
        return self._repository.find(name).bundle

    def followed(self) -> list[Served]:
        """The newest version of each model, with the data that its tracker reads."""
        newest = self._repository.newest()
        return [Served(model.bundle, model.recent, model.stream) for model in newest]

    def with_logits(self) -> list[tuple[Bundle, LogitReservoir]]:
        """The newest version of each model, with its recent logits."""
        return [(model.bundle, model.recent) for model in self._repository.newest()]

    def reservoir(self, bundle: Bundle) -> LogitReservoir | None:
        """The recent logits of a version; None when it was unloaded."""
        try:
            return self._repository.find(bundle.name, bundle.version).recent
        except UnknownModel:
            return None

    def sample(self, bundle: Bundle) -> Any | None:
        """A sample input from a version's report; None when it has none or was unloaded."""
        try:
            return sample_instance(self._repository.find(bundle.name, bundle.version).report)
        except UnknownModel:
            return None

    def batchers(self) -> Iterator[Batcher]:
        """Yield the queue of every version that serves."""
        for by_version in self._repository.all().values():
            for model in by_version.values():
                yield model.batcher

    def lost_graph(self) -> str | None:
        """Why a version's graph can no longer score anything; None while all can."""
        return next((each.lost for each in self.batchers() if each.lost), None)

    @property
    def queued_rows(self) -> int:
        """The number of rows that wait in the queues of all models."""
        return sum(batcher.queued_rows for batcher in self.batchers())
