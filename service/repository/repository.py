"""Scans the model folders, and loads, swaps and unloads versions.

A version that cannot be loaded is logged; the versions that serve keep serving.
"""

import asyncio
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType

from service.contract.bundle import Bundle, check_model_name, versions
from service.contract.nearest import did_you_mean
from service.priors.orders import wishes
from service.priors.orders.model_orders import ModelOrders
from service.priors.orders.wishes import AS_SET, SERVICE, ModelOrder, Wish, WorkerModel
from service.priors.revisions import StoreUnavailable
from service.process.machine import return_memory
from service.repository.loads import Loads, first_of, tell
from service.repository.on_demand import ModelRests, OnDemand, UnknownModel, size_of
from service.repository.served import ServedModel, Trial

logger = logging.getLogger(__name__)


class OtherWorkerFailed(RuntimeError):
    """This worker has carried out an order for a model, but another worker could not."""


class NoRollout(ValueError):
    """The version that was named cannot be on trial."""


class ModelFailed(ValueError):
    """A model could not be loaded; the message says why."""


Loaded = Mapping[str, Mapping[int, ServedModel]]
_UNLOADED = "it was unloaded while it was loading"
_MAX_REASON = 4000
"""The most characters of a reason shown to other workers: it may quote a whole file."""
_MAX_OUTCOMES = 256


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
        self._folder, self._prepare, self._keep = folder, prepare, keep_versions
        self._set_default, self._load_seconds = default_model, load_seconds
        self._rollout = rollout
        self._loaded: Loaded = MappingProxyType({})
        self._ending, self._refresh_folder = "", refresh
        self._retired = retired
        self._on_demand = OnDemand(max_loaded_bytes) if max_loaded_bytes else None
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._channel = orders
        self._orders: dict[str, ModelOrder] = {}
        """By model, the newest order, whether carried out or not."""
        self._outcomes: OrderedDict[int, asyncio.Task[None]] = OrderedDict()
        """By change number: the outcome of the last orders in this worker."""
        self._carried_out: dict[str, tuple[int, str | None]] = {}
        """By model: the newest order that this worker dealt with, and its error if it failed."""
        self._begun = False
        if orders is not None:
            orders.follow(self.obey)
        self.faults: dict[tuple[str, int], str] = {}
        """(model, version) → why it does not serve."""
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
                f"no model '{name[:80]}'; there is {', '.join(known) or 'none'}"
                f"{did_you_mean(name[:80], known)}"
            )
        if self._on_demand is not None:
            self._on_demand.used(name)
        if version is None:
            found = next(iter(by_version.values()))
            return found if found.trial is None or body is None else found.choose(body)
        if version not in by_version:
            there = ", ".join(map(str, sorted(by_version)))
            raise UnknownModel(
                f"model '{name}' has no version {version} loaded; there is {there}: name one of "
                "them, or none for the default"
            )
        return by_version[version]

    def default_name(self) -> str:
        """The model of /predict and /priors. Raises UnknownModel with the names to choose from."""
        if (wanted := self.wanted_default) is not None:
            return wanted
        known = self.known()
        if len(known) != 1:
            names = ", ".join(sorted(known)) or "none"
            raise UnknownModel(
                f"no default model is set (--default-model); there is {names}: use /models/NAME/…"
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
        order = self._orders.get(SERVICE)
        return self._set_default if order is None else order.wish.default_model or self._set_default

    def all(self) -> Loaded:
        """Name → version → model, first the version that answers by default."""
        return self._loaded

    def order(self, name: str) -> ModelOrder | None:
        """The newest order for a model; None when none was given."""
        return self._orders.get(name)

    def wish(self, name: str) -> Wish:
        """The desired state of a model."""
        order = self._orders.get(name)
        return AS_SET if order is None else order.wish

    def newest(self) -> list[ServedModel]:
        """The default version of each model: the newest that is not on trial."""
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
            (name, version, self.faults.get((name, version), self._why_unserved(name, version)))
            for name in self.names_on_disk()
            for version in versions(self._folder / name)
        ]

    def _why_unserved(self, name: str, version: int) -> str:
        wish = self.wish(name)
        if not wish.loaded:
            return "unloaded"
        if version in wish.withdrawn:
            return "taken back"
        if self._on_demand is not None and name in self._on_demand.resting:
            return "loaded when a request names it"
        if name not in self._loaded:
            return "not loaded"
        return f"not among the newest {wish.keep_versions or self._keep} versions"

    def _wanted(self) -> list[str]:
        return [name for name in self.names_on_disk() if self.wish(name).loaded]

    async def load_all(self) -> None:
        """Load new versions and retire those whose folder is gone; unloaded models stay so.

        When the folder of all models is gone or empty, as after a lost mount, all that was loaded
        goes on serving, and `folder_fault` says so.
        """
        if self._refresh_folder is not None and self._begun:
            await self._refresh_folder()
        before, self.folder_fault = self.folder_fault, self._why_lost()
        if self.folder_fault:
            if self.folder_fault != before:
                logger.error("%s", self.folder_fault)
            return
        self._begun, known = True, list(self._orders.values())
        await asyncio.gather(*(self._taken_up(name) for name in self._to_load()))
        for name in set(self._loaded) - set(self._wanted()) - set(self._stops):
            self._unserve(name)
        for order in known:
            self._note(order, None)
        self._report()
        await asyncio.to_thread(return_memory)

    def _why_lost(self) -> str:
        """Why the folder of all models cannot be what it was; empty if it can."""
        if not self._loaded:
            return ""
        try:
            if any(self._folder.iterdir()):
                return ""
            fault = "is empty"
        except OSError as error:
            fault = f"cannot be read: {error.strerror}"
        return (
            f"the models folder '{self._folder}' {fault}; the models that were loaded go on "
            "serving, and are lost with a restart: mount or restore the folder, then reload "
            "(SIGHUP). To stop a model, unload it by its name"
        )

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
            task.add_done_callback(_heard)
            task.add_done_callback(lambda _done: self._waking.pop(name, None))
        await asyncio.shield(task)

    async def _woken(self, name: str) -> None:
        if self._refresh_folder is not None:
            await self._refresh_folder()
        await self._taken_up(name)
        self._report()
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
        self._check_on_disk(name)
        await self._begin_rollout(name)
        await self._give(name, wishes.load, by)

    async def unload(self, name: str, *, by: str = "") -> None:
        """Have every worker stop serving and loading a model; requests in progress are finished.

        Raises UnknownModel, OtherWorkerFailed and StoreUnavailable.
        """
        if name not in self.known() and name not in self._stops:
            loaded = ", ".join(sorted(self.known())) or "none"
            raise UnknownModel(f"no model '{name[:80]}' is loaded; there is {loaded}")
        await self._give(name, wishes.unload, by)

    async def change(self, name: str, change: Callable[[Wish], Wish], *, by: str) -> None:
        """Have every worker carry out another order for a model of the folder.

        Raises what `change` raises, UnknownModel, OtherWorkerFailed and StoreUnavailable.
        """
        self._check_on_disk(name)
        await self._give(name, change, by)

    async def make_default(self, name: str | None, *, by: str) -> None:
        """Make a model the default one in every worker; None: go back to the setting."""
        await self._give(SERVICE, partial(wishes.make_default, name=name), by)

    async def start_rollout(self, name: str, version: int, share: float, *, by: str) -> None:
        """Give a version a share of the requests that name none. Raises NoRollout and the like."""
        self._check_on_disk(name)
        there = versions(self._folder / name)
        if version not in there or version == there[0]:
            older = f"there is {', '.join(map(str, there))}"
            raise NoRollout(
                f"version {version} of model '{name}' cannot be on trial: it must be in the folder "
                f"together with an older version; {older}"
            )
        stable = max(each for each in there if each < version)
        await self._give(
            name, partial(wishes.begin_rollout, version=version, share=share, stable=stable), by
        )

    async def workers(self, name: str) -> list[WorkerModel]:
        """What each live worker of each replica serves of a model. Raises StoreUnavailable."""
        return [] if self._channel is None else await self._channel.workers(name)

    def obey(self, orders: Sequence[ModelOrder]) -> None:
        """Carry out orders that have arrived, unless they are known or overtaken."""
        for order in orders:
            known = self._orders.get(order.model)
            if known is not None and known.change >= order.change:
                continue
            self._orders[order.model] = order
            if self._begun:
                task = asyncio.get_running_loop().create_task(self._carry_out(order))
                task.add_done_callback(_heard)
                self._outcomes[order.change] = task
                if len(self._outcomes) > _MAX_OUTCOMES:
                    self._outcomes.popitem(last=False)

    async def _give(self, name: str, change: Callable[[Wish], Wish], by: str) -> None:
        """Store an order, carry it out here, and wait for the other workers."""
        if self._channel is None:
            now = self._orders.get(name)
            wish = change(self.wish(name))
            number = 1 if now is None else now.change + 1
            order: ModelOrder | None = ModelOrder(name, wish, number, by, datetime.now(UTC))
            assert order is not None
            self.obey([order])
        else:
            order = await self._channel.give(name, change, by=by)
        if order is None or not self._begun:
            return
        outcome = self._outcomes.get(order.change)
        if outcome is not None:
            await asyncio.shield(outcome)
        if self._channel is None:
            return
        failed = await self._channel.carried_out(order, seconds=self._load_seconds)
        if failed:
            failures = "; ".join(
                f"{each.replica} (process {each.pid}): {each.error}" for each in failed
            )
            raise OtherWorkerFailed(
                f"this worker has carried out the order for '{name[:80]}', but another could not; "
                f"try again, or restart that worker: {failures[:_MAX_REASON]}"
            )

    async def _carry_out(self, order: ModelOrder) -> None:
        name, reason = order.model, None
        try:
            if name != SERVICE:
                await self._obeyed(name, order.wish)
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise
        finally:
            self._note(order, reason)
            self._report()

    def _note(self, order: ModelOrder, reason: str | None) -> None:
        """Note that an order was carried out, or why not, unless a later one was already."""
        if self._carried_out.get(order.model, (0,))[0] < order.change:
            self._carried_out[order.model] = (order.change, reason)

    async def _obeyed(self, name: str, wish: Wish) -> None:
        if not wish.loaded:
            if name in self._stops:
                tell(self._stops[name], _UNLOADED)
            self._unserve(name)
            return
        if self._refresh_folder is not None:
            await self._refresh_folder()
        if not self._is_on_disk(name):  # not copied here yet, or deleted
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
        if self._rollout >= 1 or self._channel is None:
            return
        there = versions(self._folder / name)
        if not there:
            return
        serving = self._loaded.get(name)
        change = partial(
            wishes.take_up,
            newest=there[-1],
            serving=next(iter(serving)) if serving else None,
            share=self._rollout,
        )
        wish = self.wish(name)
        try:
            if change(wish) != wish:
                await self._channel.give(name, change, by="rollout")
        except StoreUnavailable as error:
            logger.warning(
                "version %d of %s could not be put on trial, and the version before it keeps all "
                "requests: %s; load the model again once the store works",
                there[-1],
                name,
                error,
            )

    def _report(self) -> None:
        """Report what this worker serves to the others, once it has started."""
        if self._channel is None or not self._begun:
            return
        names = {*self._loaded, *self._carried_out} or {SERVICE}
        self._channel.report({name: self._line(name) for name in sorted(names)})

    def _line(self, name: str) -> dict[str, object]:
        order, reason = self._carried_out.get(name, (0, None))
        line: dict[str, object] = {"versions": list(self._loaded.get(name, ())), "order": order}
        if reason is not None:
            line["error"] = reason[:_MAX_REASON]
        return line

    def _check_on_disk(self, name: str) -> None:
        if not self._is_on_disk(name):
            there = self.names_on_disk()
            raise UnknownModel(
                f"no model '{name[:80]}' in the repository; there is "
                f"{', '.join(there) or 'none'}{did_you_mean(name[:80], there)}"
            )

    def _is_on_disk(self, name: str) -> bool:
        try:
            check_model_name(name)
        except ValueError:
            return False
        return bool(versions(self._folder / name))

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
            self._reserve(name)
            try:
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
            folders = (self._folder / name / str(version) for version in newest)
            self._on_demand.reserve(name, size_of(folders))
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
        return [
            version
            for version in versions(self._folder / name)[::-1]
            if version not in wish.withdrawn and (newest is None or version <= newest)
        ]

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
                    "load of %s/%d failed: %s; %s; correct this, then load the model again",
                    name,
                    version,
                    error,
                    _still_serving(current),
                )
        if chosen or name in self._loaded:
            self._swap(name, _on_trial(chosen, wish))
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


def _on_trial(chosen: dict[int, ServedModel], wish: Wish) -> dict[int, ServedModel]:
    """The versions in order, the default first, with its `trial` set from the wish."""
    rollout = wish.rollout
    candidate = None if rollout is None else chosen.get(rollout.version)
    stable = [model for model in chosen.values() if model is not candidate]
    for model in chosen.values():
        model.trial = None
    if rollout is None or candidate is None or not stable:
        return chosen
    stable[0].trial = Trial.of(candidate, rollout.share)
    ordered = [stable[0], candidate, *stable[1:]]
    return {model.bundle.version: model for model in ordered}


def _heard(outcome: "asyncio.Task[None]") -> None:
    """Keep asyncio from logging the error of an order; it is in the log and in the report."""
    if not outcome.cancelled():
        outcome.exception()


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
