"""Scans the model folders, and loads, swaps and unloads versions.

A version that cannot be loaded is logged; the versions that serve keep serving.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from service.contract.bundle import Bundle
from service.contract.nearest import did_you_mean
from service.priors.orders import wishes
from service.priors.orders.model_orders import ModelOrders
from service.priors.orders.wishes import SERVICE, ModelOrder, Wish, WorkerModel
from service.priors.revisions import StoreUnavailable
from service.process.machine import return_memory, return_memory_of
from service.process.threads import failure_text
from service.repository.folder import ModelFolder
from service.repository.loads import Loads, first_of, tell
from service.repository.on_demand import ModelRests, OnDemand, UnknownModel
from service.repository.order_book import OrderBook, heard
from service.repository.served import ServedModel, put_on_trial

logger = logging.getLogger(__name__)


class NoRollout(ValueError):
    """The version that was named cannot be on trial."""


class ModelFailed(ValueError):
    """A model could not be loaded; the message says why."""


Loaded = Mapping[str, Mapping[int, ServedModel]]
_UNLOADED = "it was unloaded while it was loading"
LOADING = "being loaded"
"""Why a version does not serve yet."""
_NO_VERSION = 0
"""The version under which `faults` holds the fault of a model whose folder cannot be read."""


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
        rollout: float = 1.0,
        max_loaded_bytes: int = 0,
        orders: ModelOrders | None = None,
        refresh: Callable[[], Awaitable[None]] | None = None,
        retired: Callable[[Bundle], None] = lambda _bundle: None,
    ) -> None:
        """Nothing is loaded until `load_all` or `load`.

        folder: the models, a folder each. prepare: opens and warms a version in a worker thread;
        what it returns is called on the event loop and makes the served model. keep_versions: how
        many of the newest versions serve. load_seconds: how long a load may take. default_model:
        the model of `/predict`. rollout: the share of requests that a new version gets at first; 1:
        all. max_loaded_bytes: approximate limit on the memory of loaded models; others are loaded
        when a request names them, and the least recently used are unloaded. 0: no limit.
        orders: sends orders to every worker; None: orders stay in this process. refresh: brings
        the folder up to date with the store that it mirrors. retired: called
        with each version that no longer serves.
        """
        self._folder, self._prepare, self._keep = ModelFolder(folder), prepare, keep_versions
        self._set_default, self._rollout = default_model, rollout
        self._loaded: Loaded = MappingProxyType({})
        self._ending, self._refresh_folder = "", refresh
        self._retired = retired
        self._on_demand = OnDemand(max_loaded_bytes) if max_loaded_bytes else None
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._book = OrderBook(
            orders, carry_out=self._obey, serving=self.all, wait_seconds=load_seconds
        )
        self.faults: dict[tuple[str, int], str] = {}
        """(model, version) → why it does not serve; version 0: why no version can be found."""
        self.folder_fault = ""
        """Why the folder of all models is not looked at; empty while it is."""
        self.loads: Loads[Callable[[], ServedModel]] = Loads(seconds=load_seconds)
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """One lock for each model, so that a slow load delays no other model."""
        self._stops: dict[str, asyncio.Future[str]] = {}
        """For each model that is loading: a future that ends the wait when it gets a reason."""
        self._retiring: set[asyncio.Task[None]] = set()

    def find(
        self,
        name: str | None = None,
        version: int | None = None,
        body: bytes | bytearray | None = None,
    ) -> ServedModel:
        """A model (None: the default one), in the version that answers unless one is given.

        body: of the request, which chooses between two versions while one is on trial. Raises
        UnknownModel.
        """
        loaded = self._loaded
        name = name if name is not None else self.default_name()
        by_version = loaded.get(name)
        if not by_version:
            if self._on_demand is not None and name in self._on_demand.resting:
                raise ModelRests(name, partial(self._wake, name))
            known = sorted(self.known())
            raise UnknownModel(
                f"no model '{name[:80]}'; {_one_of(known)}{did_you_mean(name[:80], known)}"
            )
        if self._on_demand is not None:
            self._on_demand.used(name)
        if version is None:
            found = next(iter(by_version.values()))
            return found if found.trial is None or body is None else found.choose(body)
        if version not in by_version:
            there = ", ".join(map(str, sorted(by_version)))
            raise UnknownModel(
                f"model '{name}' has no version {version} loaded; it has {there}: name one of "
                "them, or none for the default"
            )
        return by_version[version]

    def default_name(self) -> str:
        """The model of /predict and /priors. Raises UnknownModel with the names to choose from."""
        if (wanted := self.wanted_default) is not None:
            return wanted
        known = self.known()
        if len(known) != 1:
            raise UnknownModel(
                "no default model is set (--default-model); use /models/NAME/… with the name of a "
                f"model: {_one_of(known)}"
            )
        return next(iter(known))

    def known(self) -> Collection[str]:
        """The names of the models that answer: those that are loaded, and those that rest."""
        if self._on_demand is None:
            return self._loaded.keys()
        return self._loaded.keys() | self._on_demand.resting

    def resting(self) -> list[str] | None:
        """The names of the models that are loaded on demand and are not loaded now.

        None when every model is loaded.
        """
        return None if self._on_demand is None else sorted(self._on_demand.resting)

    @property
    def wanted_default(self) -> str | None:
        """The default model by order, else by the setting; it may not exist."""
        order = self._book.newest(SERVICE)
        return self._set_default if order is None else order.wish.default_model or self._set_default

    def all(self) -> Loaded:
        """Name → version → model, first the version that answers by default."""
        return self._loaded

    def order(self, name: str) -> ModelOrder | None:
        """The newest order for a model; None when none was given."""
        return self._book.newest(name)

    def wish(self, name: str) -> Wish:
        """The desired state of a model."""
        return self._book.wish(name)

    def newest(self) -> list[ServedModel]:
        """The default version of each model: the newest that is not on trial."""
        return [next(iter(by_version.values())) for by_version in self._loaded.values()]

    def names_on_disk(self) -> list[str]:
        """Return the name of every folder that holds a version, loaded or not."""
        return self._folder.names()

    def misplaced(self) -> list[str]:
        """Describe each model file that is not served because it lies outside NAME/VERSION."""
        return self._folder.misplaced()

    def on_disk(self) -> list[tuple[str, int, str]]:
        """Return (name, version, why it does not serve) of every version in the folder.

        The reason means nothing for a version that serves.
        """
        return [
            (name, version, self.faults.get((name, version), self._why_unserved(name, version)))
            for name in self.names_on_disk()
            for version in self._folder.versions(name)
        ]

    def _why_unserved(self, name: str, version: int) -> str:
        wish = self.wish(name)
        if not wish.loaded:
            return "unloaded"
        if version in wish.withdrawn:
            return "taken back"
        if self._on_demand is not None and name in self._on_demand.resting:
            return "loaded when a request names it"
        keep = wish.keep_versions or self._keep
        trial = wish.rollout
        if trial is not None and version < trial.version and version not in self._versions(name):
            return "a newer version is on trial in its place"
        if name in self._stops and version in self._versions(name)[:keep]:
            return LOADING
        loaded = name in self._loaded
        return f"not among the newest {keep} versions" if loaded else "not loaded"

    def _wanted(self) -> list[str]:
        return [name for name in self.names_on_disk() if self.wish(name).loaded]

    async def load_all(self) -> None:
        """Load new versions and retire those whose folder is gone; unloaded models stay so.

        When the folder of all models is gone or empty, as after a lost mount, all that was loaded
        goes on serving, and `folder_fault` says so.
        """
        if self._refresh_folder is not None and self._book.begun:
            await self._refresh_folder()
        before = self.folder_fault
        self.folder_fault = self._folder.why_lost() if self._loaded else ""
        if self.folder_fault:
            if self.folder_fault != before:
                logger.error("%s", self.folder_fault)
            return
        unreadable = self._update_faults()
        arrived = self._book.begin()
        await asyncio.gather(*(self._taken_up(name) for name in self._to_load()))
        for name in set(self._loaded) - set(self._wanted()) - set(self._stops) - unreadable:
            self._unserve(name)
        self._book.close_orders(arrived)
        await asyncio.to_thread(self._folder.tell_misplaced)
        await asyncio.to_thread(return_memory)

    def _update_faults(self) -> set[str]:
        """Forget the faults of versions that are gone, and log each folder that cannot be listed.

        Each such folder is logged once. Returns the names of their models.
        """
        found = self._folder.unreadable()
        for name, version in list(self.faults):
            there = [_NO_VERSION] if name in found else self._folder.versions(name)
            if version not in there:
                del self.faults[name, version]
        for name, reason in found.items():
            if self.faults.get((name, _NO_VERSION)) != reason:
                self.faults[name, _NO_VERSION] = reason
                current = self._loaded.get(name, {})
                logger.error("load of %s failed: %s; %s", name, reason, _still_serving(current))
        return set(found)

    def _to_load(self) -> list[str]:
        """The models to load now: all, or under a limit the default one and those loaded before."""
        wanted = self._wanted()
        if self._on_demand is None:
            return wanted
        self._on_demand.resting = set(wanted) - set(self._loaded)
        return [name for name in wanted if name in {*self._loaded, *self._pinned()}]

    def _pinned(self) -> list[str]:
        """The default model, if there is one: it is never unloaded to make room."""
        try:
            return [self.default_name()]
        except UnknownModel:
            return []

    async def _wake(self, name: str) -> None:
        """Load a model that rests, once for all waiting requests. Raises UnknownModel."""
        task = self._waking.get(name)
        if task is None:
            task = self._waking[name] = asyncio.get_running_loop().create_task(self._woken(name))
            task.add_done_callback(heard)
            task.add_done_callback(lambda _done: self._waking.pop(name, None))
        await asyncio.shield(task)

    async def _woken(self, name: str) -> None:
        if self._refresh_folder is not None:
            await self._refresh_folder()
        await self._taken_up(name)
        self._book.report()
        if name not in self._loaded:
            reasons = [reason for (model, _), reason in self.faults.items() if model == name]
            raise UnknownModel(
                f"model '{name}' was not loaded: "
                f"{'; '.join(reasons) or self._ending or 'it is not in the repository any more'}"
            )

    async def _taken_up(self, name: str) -> None:
        await self._begin_rollout(name)
        await self._refreshed(name)

    # ---- orders, which every worker carries out

    async def load(self, name: str, *, by: str = "") -> None:
        """Have every worker load the newest versions of a model, and retire deleted ones.

        Raises UnknownModel, ModelFailed (older versions keep serving), OtherWorkerFailed and
        StoreUnavailable.
        """
        if self._refresh_folder is not None:
            await self._refresh_folder()
        self._folder.check(name)
        await self._begin_rollout(name)
        await self._book.give(name, wishes.load, by=by)

    async def unload(self, name: str, *, by: str = "") -> None:
        """Have every worker stop serving and loading a model; requests in progress are finished.

        Raises UnknownModel, OtherWorkerFailed and StoreUnavailable. A model that failed to load, or
        that only another worker is loading, can be unloaded too: otherwise every look at the folder
        would load it again.
        """
        is_due = self.wish(name).loaded and self._folder.holds(name)
        if name not in self.known() and name not in self._stops and not is_due:
            raise UnknownModel(
                f"no model '{name[:80]}' is loaded; {_one_of(self.known())}"
                f"{did_you_mean(name[:80], self.known())}"
            )
        await self._book.give(name, wishes.unload, by=by)

    async def change(self, name: str, change: Callable[[Wish], Wish], *, by: str) -> None:
        """Have every worker carry out another order for a model of the folder.

        Raises what `change` raises, UnknownModel, OtherWorkerFailed and StoreUnavailable.
        """
        self._folder.check(name)
        await self._book.give(name, change, by=by)

    async def make_default(self, name: str | None, *, by: str) -> None:
        """Make a model the default one in every worker; None: go back to the setting."""
        await self._book.give(SERVICE, partial(wishes.make_default, name=name), by=by)

    async def start_rollout(self, name: str, version: int, share: float, *, by: str) -> None:
        """Give a version a share of the requests that name none. Raises NoRollout and the like."""
        self._folder.check(name)
        there = self._folder.versions(name)
        if version not in there or version == there[0]:
            held = f"the folder has {', '.join(map(str, there)) or 'none'}"
            raise NoRollout(
                f"version {version} of model '{name}' cannot be on trial: it must be in the folder "
                f"together with an older version; {held}"
            )
        older = [each for each in there if each < version]
        answering = next(iter(self._loaded.get(name, ())), version)
        allowed = set(older) - set(self.wish(name).withdrawn)
        stable = answering if answering in allowed else max(allowed or older)
        begin = partial(wishes.begin_rollout, version=version, share=share, stable=stable)
        await self._book.give(name, begin, by=by)

    async def workers(self, name: str) -> list[WorkerModel]:
        """Return the versions of a model that each live worker serves. Raises StoreUnavailable."""
        return await self._book.workers(name)

    async def _obey(self, name: str, wish: Wish) -> None:
        """Bring a model to its desired state. Raises UnknownModel and ModelFailed."""
        if not wish.loaded:
            if name in self._stops:
                tell(self._stops[name], _UNLOADED)
            self._unserve(name)
            return
        if self._refresh_folder is not None:
            await self._refresh_folder()
        if not self._folder.holds(name):  # not copied here yet, or deleted
            raise UnknownModel(
                f"no model '{name[:80]}' in the repository of this worker; copy it into the "
                "--models folder of this replica"
            )
        stopped = await self._refreshed(name)
        if stopped is not None:
            raise ModelFailed(f"model '{name}' was not loaded: {stopped}")
        faults = [
            self.faults[name, v] for v in self._versions(name)[:1] if (name, v) in self.faults
        ]
        if faults:
            raise ModelFailed(faults[0])

    async def _begin_rollout(self, name: str) -> None:
        """Put a new version on trial, where a share is set, once for all workers."""
        if self._rollout >= 1:
            return
        there = self._folder.versions(name)
        if not there:
            return
        serving = self._loaded.get(name)
        change = partial(
            wishes.take_up,
            newest=there[-1],
            serving=next(iter(serving)) if serving else None,
            share=self._rollout,
        )
        try:
            await self._book.send(name, change, by="rollout")
        except StoreUnavailable as error:
            logger.warning(
                "version %d of %s could not be put on trial, and the version before it keeps all "
                "requests: %s; load the model again once the store works",
                there[-1],
                name,
                error,
            )

    def end_loading(self, reason: str) -> None:
        """Load nothing more, and end every wait for a load with this reason."""
        self._ending = reason
        for stop in self._stops.values():
            tell(stop, reason)

    def prepare_with(self, prepare: "Callable[[Path], Callable[[], ServedModel]]") -> None:
        """Open versions from now on with `prepare`; those that serve stay as they are."""
        self._prepare = prepare

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
            if self._ending or not self.wish(name).loaded:  # it may have changed while this waited
                return self._ending or _UNLOADED
            stop = self._stops[name] = asyncio.get_running_loop().create_future()
            try:
                self._reserve(name)
                return await self._refresh(name, stop)
            finally:
                del self._stops[name]
                if self._on_demand is not None:
                    self._on_demand.settle(name, is_loaded=name in self._loaded)
                    self._let_go(keep=name)

    def _reserve(self, name: str) -> None:
        """Unload models until this one, which is about to be loaded, fits."""
        if self._on_demand is not None:
            newest = self._versions(name)[: self.wish(name).keep_versions or self._keep]
            self._on_demand.reserve(name, self._folder.loaded_bytes(name, newest))
            self._let_go(keep=name)

    def _let_go(self, *, keep: str) -> None:
        """Unload models until the others fit the limit.

        The default model, models that are loading and models that a request holds stay.
        """
        assert self._on_demand is not None
        held = (
            name
            for name, by_version in self._loaded.items()
            if any(model.is_held for model in by_version.values())
        )
        for name in self._on_demand.let_go(keep={keep, *held, *self._stops, *self._pinned()}):
            self._swap(name, {})

    def _versions(self, name: str) -> list[int]:
        """The versions in the folder that may serve, newest first."""
        wish = self.wish(name)
        newest = None if wish.rollout is None else wish.rollout.version
        if newest is None and self._rollout < 1:
            newest = wish.accepted
        there = [
            version
            for version in self._folder.versions(name)[::-1]
            if version not in wish.withdrawn and (newest is None or version <= newest)
        ]
        return there if wish.rollout is None else wishes.without_replaced(there, wish)

    async def _refresh(self, name: str, stop: "asyncio.Future[str]") -> str | None:
        wish = self.wish(name)
        candidate = None if wish.rollout is None else wish.rollout.version
        keep = (wish.keep_versions or self._keep) + (candidate is not None)
        current = self._loaded.get(name, {})
        chosen: dict[int, ServedModel] = {}
        for version in self._versions(name):
            if len(chosen) == keep:
                break
            if version in current:
                chosen[version] = current[version]
                continue
            try:
                folder = self._folder.version(name, version)
                load = self.loads.begin((name, version), partial(self._prepare, folder))
                await first_of(load, stop)
                if stop.done():
                    self.loads.leave((name, version))
                    self._retire_all(chosen, current)
                    return stop.result()
                chosen[version] = load.result()()
                self.faults.pop((name, version), None)
            except Exception as error:  # noqa: BLE001 - a bad version must not stop the others
                reason = failure_text(error)
                self.faults[name, version] = reason
                logger.error(  # noqa: TRY400
                    "load of %s/%d failed: %s; %s; correct this, then load the model again",
                    name,
                    version,
                    reason,
                    _still_serving(current),
                )
        if chosen or name in self._loaded:
            self._swap(name, put_on_trial(chosen, wish.rollout))
        return None

    def _unserve(self, name: str) -> None:
        """Stop serving a model, and do not load it on demand either."""
        self._swap(name, {})
        if self._on_demand is not None:
            self._on_demand.settle(name, is_loaded=False)

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
    bundle = model.bundle
    logger.info("model %s version %d is unloaded", bundle.name, bundle.version)
    vast: list[Sequence[object] | None] = [bundle.class_names, bundle.class_counts]
    del model, bundle
    await asyncio.to_thread(return_memory_of, vast)


def _still_serving(versions: Mapping[int, ServedModel]) -> str:
    """The end of a log line about a failed load: which versions keep serving."""
    if not versions:
        return "no version of it serves"
    numbers = ", ".join(map(str, sorted(versions)))
    if len(versions) == 1:
        return f"version {numbers} keeps serving"
    return f"versions {numbers} keep serving"


def _one_of(names: Collection[str]) -> str:
    """The models that a request may name, for a message."""
    return f"expected one of {', '.join(sorted(names))}" if names else "no model is loaded"
