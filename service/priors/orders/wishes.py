"""The desired state of a model, as set by orders, and the state that a worker reports."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field

SERVICE = ""
"""The model name of orders that concern the service as a whole; no model has it."""


class Rollout(BaseModel):
    """A version that answers a share of the requests that name no version."""

    model_config = ConfigDict(frozen=True)

    version: Annotated[int, Field(ge=1)]
    share: Annotated[float, Field(gt=0, le=1)]


class Wish(BaseModel):
    """The desired state of a model. Members that a newer release has written are ignored.

    loaded: whether it serves. scans: how many times a search for new versions was ordered.
    keep_versions: how many of the newest versions serve; None: as the setting says. accepted: the
    newest version that may answer every request, where new ones begin with a share. rollout: a
    newer version on trial. withdrawn: versions taken back, which do not serve. default_model: for
    SERVICE only.
    """

    model_config = ConfigDict(frozen=True)

    loaded: bool = True
    scans: int = 0
    keep_versions: Annotated[int, Field(ge=1, le=100)] | None = None
    accepted: Annotated[int, Field(ge=1)] | None = None
    rollout: Rollout | None = None
    withdrawn: tuple[int, ...] = ()
    default_model: str | None = None


AS_SET = Wish()
"""The desired state of a model for which no order was given."""


@dataclass(frozen=True)
class ModelOrder:
    """The newest order for a model. change: its place among all changes of the store."""

    model: str
    wish: Wish
    change: int
    by: str
    updated_at: datetime


@dataclass(frozen=True)
class WorkerModel:
    """The state of a model in one worker, by its last report.

    versions: those that serve, the default first. order: change number of the last order that it
    has carried out. error: why it could not. seen: number of the last change that it has read.
    serving: False while the worker starts.
    """

    replica: str
    pid: int
    worker: str
    seen_at: datetime
    seen: int
    serving: bool
    versions: tuple[int, ...] = ()
    order: int = 0
    error: str | None = None


class OrderStore(Protocol):
    """The part of a store that keeps orders; calls may block and may raise StoreUnavailable."""

    def order(
        self, model: str, change: Callable[[Wish], Wish], *, by: str, after: int
    ) -> ModelOrder | None:
        """Change the desired state of a model, atomically, and return the order in force.

        Nothing is written when `change` leaves the wish as it is. None when there never was an
        order and none is written now.
        """

    def worker_models(self, model: str) -> list[WorkerModel]:
        """Return the versions of a model that each live worker serves."""

    def scrape_targets(self) -> list[str]:
        """HOST:PORT of the metrics port of each live replica that has one."""


class NoTrial(ValueError):
    """There is no version on trial that could be promoted or taken back."""


def load(wish: Wish) -> Wish:
    """Look for new versions and serve them."""
    return wish.model_copy(update={"loaded": True, "scans": wish.scans + 1})


def unload(wish: Wish) -> Wish:
    """Stop serving."""
    return wish.model_copy(update={"loaded": False})


def keep(wish: Wish, *, versions: int | None) -> Wish:
    """Serve this many of the newest versions; None: as many as the setting says."""
    return wish.model_copy(update={"keep_versions": versions})


def make_default(wish: Wish, *, name: str | None) -> Wish:
    """Make a model the default one; None: go back to the model of the setting."""
    return wish.model_copy(update={"default_model": name})


def begin_rollout(wish: Wish, *, version: int, share: float, stable: int) -> Wish:
    """Put a version on trial beside `stable`, or change its share."""
    return wish.model_copy(
        update={
            "loaded": True,
            "accepted": stable,
            "rollout": Rollout(version=version, share=share),
            "withdrawn": tuple(each for each in wish.withdrawn if each != version),
        }
    )


def take_up(wish: Wish, *, newest: int, serving: int | None, share: float) -> Wish:
    """Put the newest version on trial, unless it is accepted, on trial or taken back already.

    serving: the version that answers now. If none serves and none is accepted, the newest is
    accepted.
    """
    if newest in wish.withdrawn:
        return wish
    if wish.accepted is None:
        if serving is None or serving >= newest:
            return wish.model_copy(update={"accepted": newest})
        wish = wish.model_copy(update={"accepted": serving})
    assert wish.accepted is not None
    on_trial = wish.accepted if wish.rollout is None else wish.rollout.version
    if newest <= max(wish.accepted, on_trial):
        return wish
    return wish.model_copy(update={"rollout": Rollout(version=newest, share=share)})


def without_replaced(versions: list[int], wish: Wish) -> list[int]:
    """Leave out the versions that were never accepted, except the one on trial.

    A newer version has replaced them on trial, so they answer nothing. Where no version that was
    accepted is left, all remain: something must answer.
    """
    assert wish.rollout is not None
    accepted = wish.accepted
    if accepted is None:
        return versions
    kept = [each for each in versions if each <= accepted or each == wish.rollout.version]
    return kept if any(each <= accepted for each in kept) else versions


def promote(wish: Wish) -> Wish:
    """Let the version on trial answer every request. Raises NoTrial."""
    accepted = _on_trial(wish).version
    return wish.model_copy(update={"rollout": None, "accepted": accepted})


def take_back(wish: Wish) -> Wish:
    """Stop serving the version on trial. Raises NoTrial."""
    version = _on_trial(wish).version
    return wish.model_copy(update={"rollout": None, "withdrawn": (*wish.withdrawn, version)})


def _on_trial(wish: Wish) -> Rollout:
    if wish.rollout is None:
        raise NoTrial(
            "no version of the model is on trial; its rollout may already have ended: see GET "
            "/models"
        )
    return wish.rollout
