"""Scans the model folders, and loads, swaps and unloads versions.

A version that cannot be loaded is logged; the versions that serve keep serving.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from service.contract.bundle import Bundle, check_model_name, versions
from service.machine import return_memory
from service.repository.loads import Loads, first_of, tell
from service.repository.served import ServedModel

logger = logging.getLogger(__name__)


class UnknownModel(LookupError):
    """No such model or version is loaded; the message lists those that are."""


class OtherWorkerFailed(RuntimeError):
    """This worker loaded or unloaded a model, but another worker failed to."""


class ModelFailed(ValueError):
    """A model could not be loaded; the message says why."""


Loaded = Mapping[str, Mapping[int, ServedModel]]
_UNLOADED = "it was unloaded while it was loading"


class Repository:
    """The models that serve: one immutable mapping, which is replaced as a whole."""

    def __init__(
        self,
        folder: Path,
        *,
        prepare: "Callable[[Path], Callable[[], ServedModel]]",
        keep_versions: int,
        load_seconds: float,
        default_model: str | None = None,
        unloaded: Sequence[str] = (),
        everywhere: Callable[[str, str], Awaitable[None]] | None = None,
        retired: Callable[[Bundle], None] = lambda _bundle: None,
    ) -> None:
        """Nothing is loaded until `load_all` or `load`.

        folder: the models, a folder each. prepare: opens and warms a version in a worker thread;
        what it returns is called on the event loop and makes the served model. keep_versions: how
        many of the newest versions serve. load_seconds: how long a load may take. default_model:
        the model of `/predict`. unloaded: models that stay unloaded. everywhere: loads or unloads a
        model in every worker, this one included. retired: called with each version that no longer
        serves.
        """
        self._folder, self._prepare, self._keep = folder, prepare, keep_versions
        self._default_model = default_model
        self._loaded: Loaded = MappingProxyType({})
        self._unloaded = set(unloaded)
        self._ending = ""
        self._everywhere, self._retired = everywhere, retired
        self.faults: dict[tuple[str, int], str] = {}
        """(model, version) → why it does not serve."""
        self.loads: Loads[Callable[[], ServedModel]] = Loads(seconds=load_seconds)
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One lock for each model, so that a slow load delays no other model."""
        self._stops: dict[str, asyncio.Future[str]] = {}
        """For each model that is loading: a future that ends the wait when it gets a reason."""
        self._retiring: set[asyncio.Task[None]] = set()

    def find(self, name: str | None = None, version: int | None = None) -> ServedModel:
        """Return a model version.

        name: None for the default model. version: None for the newest one. Raises UnknownModel.
        """
        loaded = self._loaded
        name = name if name is not None else self.default_name()
        by_version = loaded.get(name)
        if not by_version:
            raise UnknownModel(
                f"no model '{name[:80]}'; there is {', '.join(sorted(loaded)) or 'none'}"
            )
        if version is None:
            return next(iter(by_version.values()))
        if version not in by_version:
            there = ", ".join(map(str, sorted(by_version)))
            raise UnknownModel(f"model '{name}' has no version {version} loaded; there is {there}")
        return by_version[version]

    def default_name(self) -> str:
        """The model of /predict and /priors. Raises UnknownModel with the names to choose from."""
        if self._default_model is not None:
            return self._default_model
        if len(self._loaded) != 1:
            names = ", ".join(sorted(self._loaded)) or "none"
            raise UnknownModel(
                f"no default model is set (--default-model); there is {names}: use /models/NAME/…"
            )
        return next(iter(self._loaded))

    def all(self) -> Loaded:
        """Return the loaded versions: name → version → model, the newest version first."""
        return self._loaded

    def newest(self) -> list[ServedModel]:
        """Return the newest loaded version of each model."""
        return [next(iter(by_version.values())) for by_version in self._loaded.values()]

    def names_on_disk(self) -> list[str]:
        """Return the name of every folder that holds a version, loaded or not."""
        if not self._folder.is_dir():
            return []
        return sorted(e.name for e in self._folder.iterdir() if e.is_dir() and versions(e))

    def on_disk(self) -> list[tuple[str, int, str]]:
        """Return (name, version, why it does not serve) of every version in the folder.

        The reason means nothing for a version that serves.
        """
        return [
            (name, version, self.faults.get((name, version), self._why_unserved(name)))
            for name in self.names_on_disk()
            for version in versions(self._folder / name)
        ]

    def _why_unserved(self, name: str) -> str:
        if name in self._unloaded:
            return "unloaded"
        return (
            f"not among the newest {self._keep} versions" if name in self._loaded else "not loaded"
        )

    def _wanted(self) -> list[str]:
        return [name for name in self.names_on_disk() if name not in self._unloaded]

    async def load_all(self) -> None:
        """Load new versions and retire those whose folder is gone. Unloaded models stay
        unloaded.
        """
        await asyncio.gather(*(self._refreshed(name) for name in self._wanted()))
        for name in set(self._loaded) - set(self._wanted()) - set(self._stops):
            self._swap(name, {})
        await asyncio.to_thread(return_memory)

    async def load(self, name: str) -> None:
        """Run `load_here` in every worker. Raises its errors, and OtherWorkerFailed."""
        await (self._everywhere("load", name) if self._everywhere else self.load_here(name))

    async def unload(self, name: str) -> None:
        """Run `unload_here` in every worker. Raises its errors, and OtherWorkerFailed."""
        await (self._everywhere("unload", name) if self._everywhere else self.unload_here(name))

    async def load_here(self, name: str) -> None:
        """Load the newest versions of a model that are not loaded yet, and retire those that are
        gone.

        Raises UnknownModel, or ModelFailed; after ModelFailed the previous versions keep serving.
        """
        if not self._is_on_disk(name):
            raise UnknownModel(
                f"no model '{name[:80]}' in the repository; there is "
                f"{', '.join(self.names_on_disk()) or 'none'}"
            )
        self._unloaded.discard(name)
        stopped = await self._refreshed(name)
        if stopped is not None:
            raise ModelFailed(f"model '{name}' was not loaded: {stopped}")
        newest = versions(self._folder / name)[-1]
        if (name, newest) in self.faults:
            raise ModelFailed(self.faults[name, newest])

    def _is_on_disk(self, name: str) -> bool:
        try:
            check_model_name(name)
        except ValueError:
            return False
        return bool(versions(self._folder / name))

    async def unload_here(self, name: str) -> None:
        """Stop serving and loading a model. Requests that already use it are finished.

        Raises UnknownModel.
        """
        if name not in self._loaded and name not in self._stops:
            raise UnknownModel(f"no model '{name[:80]}' is loaded")
        self._unloaded.add(name)
        if name in self._stops:
            tell(self._stops[name], _UNLOADED)
        self._swap(name, {})

    def end_loading(self, reason: str) -> None:
        """Load nothing more, and end every wait for a load with this reason."""
        self._ending = reason
        for stop in self._stops.values():
            tell(stop, reason)

    async def close(self) -> None:
        """Retire every model and wait until all of them are closed."""
        self.loads.close()
        for name in list(self._loaded):
            self._swap(name, {})
        await asyncio.gather(*self._retiring)

    async def _refreshed(self, name: str) -> str | None:
        """Load the newest versions that are not loaded yet, then swap them in together.

        Returns the reason if it stopped early, else None.
        """
        async with self._one_at_a_time[name]:
            if (
                self._ending or name in self._unloaded
            ):  # may have changed while this call waited for the lock
                return self._ending or _UNLOADED
            stop = self._stops[name] = asyncio.get_running_loop().create_future()
            try:
                return await self._refresh(name, stop)
            finally:
                del self._stops[name]

    async def _refresh(self, name: str, stop: "asyncio.Future[str]") -> str | None:
        wanted = versions(self._folder / name)[::-1]
        current = self._loaded.get(name, {})
        chosen: dict[int, ServedModel] = {}
        for version in wanted:
            if len(chosen) == self._keep:
                break
            if version in current:
                chosen[version] = current[version]
                continue
            try:
                folder = self._folder / name / str(version)
                load = self.loads.begin((name, version), partial(self._prepare, folder))
                await first_of(load, stop)
                if stop.done():
                    self.loads.leave((name, version))
                    self._retire_all(chosen, current)
                    return stop.result()
                chosen[version] = load.result()()
                self.faults.pop((name, version), None)
            except Exception as error:  # noqa: BLE001 - a bad version must not stop the others
                self.faults[name, version] = f"{error}"
                logger.error(  # noqa: TRY400
                    "load of %s/%d failed: %s; %s", name, version, error, _still_serving(current)
                )
        if chosen or name in self._loaded:
            self._swap(name, chosen)
        return None

    def _swap(self, name: str, by_version: dict[int, ServedModel]) -> None:
        old = self._loaded.get(name, {})
        after = {k: v for k, v in self._loaded.items() if k != name}
        if by_version:
            after[name] = MappingProxyType(by_version)
        self._loaded = MappingProxyType(after)
        self._retire_all(old, by_version)

    def _retire_all(self, old: Mapping[int, ServedModel], kept: Mapping[int, ServedModel]) -> None:
        """Retire the versions of `old` that are not in `kept`, once no request holds them."""
        for version, model in old.items():
            if kept.get(version) is not model:
                task = asyncio.get_running_loop().create_task(_retire(model, self._retired))
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)


async def _retire(model: ServedModel, retired: Callable[[Bundle], None]) -> None:
    await model.retire()
    retired(model.bundle)
    logger.info("model %s version %d is unloaded", model.bundle.name, model.bundle.version)
    del model
    await asyncio.to_thread(return_memory)


def _still_serving(versions: Mapping[int, ServedModel]) -> str:
    """The end of a log line about a failed load: which versions keep serving."""
    if not versions:
        return "no version of it serves"
    numbers = ", ".join(map(str, sorted(versions)))
    if len(versions) == 1:
        return f"version {numbers} keeps serving"
    return f"versions {numbers} keep serving"
