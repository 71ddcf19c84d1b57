"""Inputs and a prior in, ranked classes out. The prior is read once, when the request is admitted."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.batching.run import MAX_GRAPH_TOP_K
from service.batching.work import Abandoned, Awaited, DeadlinePassed, Entry, Overloaded, Work
from service.contract.adjustment import MIN_TAU, InvalidTau, check_tau
from service.contract.bundle import Bundle
from service.contract.prior import UnknownLabelFrequencies
from service.graph.session import GraphOutputs
from service.priors.priors import Priors
from service.priors.revisions import PriorRevision
from service.priors.rule import source_warnings
from service.repository.served import ServedModel
from service.wire.arrays import InvalidParameter
from service.wire.parameters import Parameters

DEFAULT_TOP_K = 5


class RowSettings(NamedTuple):
    """The tau (one for all rows, or [n]) and the priors of a request; prior_of_row [n] counts in `revisions`, None is the first."""

    tau: float | NDArray[np.float32]
    revisions: tuple[PriorRevision, ...]
    prior_of_row: NDArray[np.int64] | None = None


class Classifier:
    """Chooses the prior and tau of a request and hands its rows to the model's batcher."""

    def __init__(self, priors: Priors, *, tau_cap: float) -> None:
        self._tau_cap = tau_cap
        self.revision_of = priors.requested
        self.revision_at_hand = priors.at_hand

    def work(
        self,
        model: ServedModel,
        inputs: NDArray[Any],
        parameters: Parameters,
        revision: PriorRevision,
        *,
        deadline: float = float("inf"),
        is_abandoned: Callable[[], bool] | None = None,
        full: bool = False,
        is_traffic: bool = True,
    ) -> Work:
        """What a batcher needs to score inputs [n, …] with one prior. It holds a slot of the model's table until it is scored.

        With `full`, all logits and probabilities come too. deadline is a time of time.monotonic(), looked at when rows are
        queued and when they are scored. Raises the errors of the parameters.
        """
        bundle = model.bundle
        top_k = check_top_k(parameters.top_k, len(bundle.class_names))
        tau = self.tau_of(bundle, parameters.tau)
        check_adjustable(bundle, revision, tau)
        slot = model.table.acquire(revision.key, revision.offset)
        full = full or top_k > MAX_GRAPH_TOP_K
        return Work(inputs, tau, slot, (slot,), top_k, full, deadline, is_abandoned, is_traffic)

    async def score(
        self,
        model: ServedModel,
        inputs: NDArray[Any],
        settings: RowSettings,
        *,
        top_k: int,
        deadline: float = float("inf"),
        hard_deadline: bool = False,
        is_abandoned: Callable[[], bool] | None = None,
        full: bool = False,
    ) -> Entry:
        """Score inputs [n, …], each row with the tau and prior that `settings` gives it; see `work` and `submit`."""
        table = model.table
        slots = tuple(table.acquire(each.key, each.offset) for each in settings.revisions)
        rows = settings.prior_of_row
        work = Work(
            inputs,
            settings.tau,
            slots[0] if rows is None else np.array(slots, np.int64)[rows],
            slots,
            top_k,
            full or top_k > MAX_GRAPH_TOP_K,
            deadline,
            is_abandoned,
        )
        return await submit(model, work, hard_deadline=hard_deadline)

    async def settings_of(
        self,
        bundle: Bundle,
        tau: float | NDArray[np.float32] | None,
        priors: Sequence[str | dict[str, Any] | None],
        prior_of_row: NDArray[np.int64] | None = None,
    ) -> RowSettings:
        """Choose the prior and tau of a request, once, when it is admitted.

        tau is one for all rows, one for each [n], or None for the model's default; without prior_of_row all rows have the first
        prior. Raises the errors of tau and of the priors, and UnknownLabelFrequencies.
        """
        chosen = (
            check_taus(tau, cap=self._tau_cap)
            if isinstance(tau, np.ndarray)
            else self.tau_of(bundle, tau)
        )
        revisions = [await self.revision_of(bundle, prior) for prior in priors]
        for number, revision in enumerate(revisions):
            if revision.offset is None:
                rows = slice(None) if prior_of_row is None else prior_of_row == number
                largest = chosen if isinstance(chosen, float) else float(chosen[rows].max())
                check_adjustable(bundle, revision, largest)
        return RowSettings(chosen, tuple(revisions), prior_of_row)

    def tau_of(self, bundle: Bundle, tau: float | None) -> float:
        """The tau of a request, or the model's default. Raises InvalidTau."""
        return bundle.tau if tau is None else check_tau(tau, cap=self._tau_cap)


def enqueue(model: ServedModel, entry: Entry) -> None:
    """Queue work that holds slots of the model's table; they are given back, and the request counted, when it is refused."""
    try:
        model.batcher.enqueue(entry)
    except Exception as error:
        for slot in entry.work.held_slots:
            model.table.release(slot)
        model.metrics.rejected(rejection(error))
        raise


async def submit(model: ServedModel, work: Work, *, hard_deadline: bool = False) -> Entry:
    """Queue work and wait for its scores; a hard deadline ends the wait even while the graph runs."""
    entry = Awaited(work, asyncio.get_running_loop())
    enqueue(model, entry)
    try:
        await (_before(entry.future, work.deadline) if hard_deadline else entry.future)
    except Exception as error:
        model.metrics.rejected(rejection(error))
        raise
    if work.is_traffic:
        model.metrics.used_tau(work.tau, len(work.inputs))
    return entry


def check_room(model: ServedModel) -> None:
    """Raise Overloaded, and count it, when not one row more may wait: before the body is read, which costs more than to refuse."""
    try:
        model.batcher.check_room()
    except Overloaded as error:
        model.metrics.rejected(rejection(error))
        raise


async def _before(future: "asyncio.Future[Entry]", deadline: float) -> None:
    """Wait for the answer, or raise DeadlinePassed at the deadline even while the graph still runs."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(max(0.0, deadline - time.monotonic()), _expire, future)
    try:
        await future
    finally:
        timer.cancel()


def _expire(future: "asyncio.Future[Entry]") -> None:
    if not future.done():
        future.set_exception(deadline_passed())


def deadline_passed() -> DeadlinePassed:
    """What a caller with a hard deadline is told when it is over."""
    return DeadlinePassed("the deadline passed before the answer was there")


def check_taus(taus: NDArray[np.float32], *, cap: float) -> NDArray[np.float32]:
    """Return taus [n]. Raises InvalidTau naming the first row that is neither 0 nor within the range of check_tau."""
    fine = (taus == 0) | ((taus >= np.float32(MIN_TAU)) & (taus <= np.float32(cap)))
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        raise InvalidTau(
            f"row {row}: tau is {taus[row]:g}; expected 0 or a number from {MIN_TAU:g} to {cap:g}"
        )
    return taus


def check_top_k(top_k: int | None, num_classes: int) -> int:
    """Return top_k, by default 5 or C. Raises InvalidParameter."""
    if top_k is None:
        return min(DEFAULT_TOP_K, num_classes)
    if not 1 <= top_k <= num_classes:
        raise InvalidParameter(
            f"top_k is {top_k}; expected 1 to {num_classes}, the model's number of classes"
        )
    return top_k


def check_adjustable(bundle: Bundle, revision: PriorRevision, tau: float) -> None:
    """Raise UnknownLabelFrequencies when tau asks for an adjustment by an unknown source prior."""
    if tau and revision.offset is None:
        raise UnknownLabelFrequencies(
            f"model '{bundle.name}' has no class_counts, so tau = {tau:g} cannot be applied: PUT label_frequencies to "
            f"/models/{bundle.name}/priors/{revision.name or 'default'}, give them inline, or ask for tau=0"
        )


def warnings_of(bundle: Bundle, revision: PriorRevision, tau: float) -> tuple[str, ...]:
    """What a caller should know about the adjustment of this answer."""
    return revision.prior.warnings + (source_warnings(bundle) if tau else ())


def ranked(
    outputs: GraphOutputs, rows: slice | list[int], top_k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(class indices, probabilities) of rows [n], each [n, top_k], best first; ties go to the lower index."""
    if top_k <= outputs.top_index.shape[1]:
        return outputs.top_index[rows, :top_k], outputs.top_probability[rows, :top_k]
    assert outputs.adjusted_logits is not None
    assert outputs.probabilities is not None
    order = np.argsort(-outputs.adjusted_logits[rows], axis=1, kind="stable")[:, :top_k]
    return order, np.take_along_axis(outputs.probabilities[rows], order, axis=1)


def rejection(error: Exception) -> str:
    """Why a request was not scored, as it is counted."""
    known = {Overloaded: "overloaded", DeadlinePassed: "deadline", Abandoned: "abandoned"}
    return known.get(type(error), "invalid" if isinstance(error, ValueError) else "failed")
