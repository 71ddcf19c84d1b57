"""Model folders: scan, validate, load, swap, unload. A bad version is told and leaves the others serving."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Self

from service.batching.batcher import Batcher
from service.contract.bundle import Bundle, check_model_name, versions
from service.graph.prior_table import PriorTable
from service.graph.session import Graph
from service.machine import return_memory
from service.observe.model_metrics import ModelMetrics
from service.priors.recent import LogitReservoir
from service.repository.loads import Loads, first_of, tell
from service.wire.ranked import ClassJson

logger = logging.getLogger(__name__)


class UnknownModel(LookupError):
    """No such model or version; the message lists those there are."""


class ModelFailed(ValueError):
    """A model that could not be loaded; the message says why for each version."""


@dataclass(eq=False)
class ServedModel:
    """One loaded version and everything that belongs to it."""

    bundle: Bundle
    graph: Graph
    table: PriorTable
    batcher: Batcher
    metrics: ModelMetrics
    recent: LogitReservoir
    report: dict[str, object] = field(default_factory=dict)
    class_json: ClassJson = field(init=False)
    _holders: int = 0
    _free: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.class_json = ClassJson(self.bundle.class_names)

    def held(self) -> Self:
        """Keep the model loaded while a request uses it: `with model.held():`."""
        return self

    def hold(self) -> None:
        """Keep the model loaded until `let_go`."""
        self._holders += 1

    def let_go(self) -> None:
        """See hold."""
        self._holders -= 1
        if self._holders == 0:
            self._free.set()

    def __enter__(self) -> Self:
        self.hold()
        return self

    def __exit__(self, *_error: object) -> None:
        self.let_go()

    async def retire(self) -> None:
        """Wait until no request uses the model, then let go of its session and memory."""
        while self._holders:
            self._free.clear()
            await self._free.wait()
        await self.batcher.drain()
        self.batcher.close()


Loaded = Mapping[str, Mapping[int, ServedModel]]
_UNLOADED = "it was unloaded while it was being loaded"


class Repository:
    """The models being served: one immutable mapping, swapped whole."""

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
        """`prepare` opens and warms a version in a worker thread; what it returns finishes on the event loop.

        `everywhere` has every worker, this one included, load or unload a model; `unloaded` are those that stay out.
        `retired` hears of each version that is served no more.
        """
        self._folder, self._prepare, self._keep = folder, prepare, keep_versions
        self._default_model = default_model
        self._loaded: Loaded = MappingProxyType({})
        self._unloaded = set(unloaded)
        self._ending = ""
        self._everywhere, self._retired = everywhere, retired
        self.faults: dict[tuple[str, int], str] = {}
        """(model, version) → why it is not served."""
        self.loads: Loads[Callable[[], ServedModel]] = Loads(seconds=load_seconds)
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By model: one that loads for long keeps no other waiting."""
        self._stops: dict[str, asyncio.Future[str]] = {}
        """Of models that are being loaded: given a reason, whoever waits for the load waits no more."""
        self._retiring: set[asyncio.Task[None]] = set()

    def find(self, name: str | None = None, version: int | None = None) -> ServedModel:
        """A model (None: the default one), its newest version unless one is named. Raises UnknownModel."""
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
        """Name → version → model, the newest version first."""
        return self._loaded

    def newest(self) -> list[ServedModel]:
        """The newest version of each model."""
        return [next(iter(by_version.values())) for by_version in self._loaded.values()]

    def names_on_disk(self) -> list[str]:
        """Every folder that could be a model, whether it is loaded or not."""
        if not self._folder.is_dir():
            return []
        return sorted(e.name for e in self._folder.iterdir() if e.is_dir() and versions(e))

    def on_disk(self) -> list[tuple[str, int, str]]:
        """(name, version, why it is not served) of every version in the folder; the reason of one that is means nothing."""
        return [
            (name, version, self.faults.get((name, version), self._why_out(name)))
            for name in self.names_on_disk()
            for version in versions(self._folder / name)
        ]

    def _why_out(self, name: str) -> str:
        if name in self._unloaded:
            return "unloaded"
        return (
            f"not among the newest {self._keep} versions" if name in self._loaded else "not loaded"
        )

    def _wanted(self) -> list[str]:
        return [name for name in self.names_on_disk() if name not in self._unloaded]

    async def load_all(self) -> None:
        """Load what is new in the folder, retire what is gone; explicit unloads stay unloaded."""
        await asyncio.gather(*(self._refreshed(name) for name in self._wanted()))
        for name in set(self._loaded) - set(self._wanted()) - set(self._stops):
            self._swap(name, {})
        await asyncio.to_thread(return_memory)

    async def load(self, name: str) -> None:
        """load_here, in every worker. Raises OtherWorkerFailed too."""
        await (self._everywhere("load", name) if self._everywhere else self.load_here(name))

    async def unload(self, name: str) -> None:
        """unload_here, in every worker. Raises OtherWorkerFailed too."""
        await (self._everywhere("unload", name) if self._everywhere else self.unload_here(name))

    async def load_here(self, name: str) -> None:
        """Bring one model to what its folder holds now. Raises UnknownModel or ModelFailed; what served goes on."""
        if not self._is_on_disk(name):
            raise UnknownModel(
                f"no model '{name[:80]}' in the repository; there is {', '.join(self.names_on_disk()) or 'none'}"
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
        """Stop serving a model, and loading it; requests that hold it are finished. Raises UnknownModel."""
        if name not in self._loaded and name not in self._stops:
            raise UnknownModel(f"no model '{name[:80]}' is loaded")
        self._unloaded.add(name)
        if name in self._stops:
            tell(self._stops[name], _UNLOADED)
        self._swap(name, {})

    def end_loading(self, reason: str) -> None:
        """No model is loaded any more, and nobody waits for one that is being loaded."""
        self._ending = reason
        for stop in self._stops.values():
            tell(stop, reason)

    async def close(self) -> None:
        """Retire everything and wait for it."""
        self.loads.close()
        for name in list(self._loaded):
            self._swap(name, {})
        await asyncio.gather(*self._retiring)

    async def _refreshed(self, name: str) -> str | None:
        """Load the newest versions that are not loaded yet, then swap them in together; why not, if that was stopped."""
        async with self._one_at_a_time[name]:
            if self._ending or name in self._unloaded:  # since it waits
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
                    self._let_go(chosen, current)
                    return stop.result()
                chosen[version] = load.result()()
                self.faults.pop((name, version), None)
            except Exception as error:  # noqa: BLE001 - a bad version is reported, never fatal to the others
                self.faults[name, version] = f"{error}"
                logger.error("model %s version %d is not served: %s", name, version, error)  # noqa: TRY400
        if chosen or name in self._loaded:
            self._swap(name, chosen)
        return None

    def _swap(self, name: str, by_version: dict[int, ServedModel]) -> None:
        old = self._loaded.get(name, {})
        after = {k: v for k, v in self._loaded.items() if k != name}
        if by_version:
            after[name] = MappingProxyType(by_version)
        self._loaded = MappingProxyType(after)
        self._let_go(old, by_version)

    def _let_go(self, old: Mapping[int, ServedModel], kept: Mapping[int, ServedModel]) -> None:
        """Retire those that are not kept, when no request uses them any more."""
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
