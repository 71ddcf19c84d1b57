"""Chooses the tau and prior of a request, once, and makes the warnings about them for its
answer.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.batching.run import MAX_GRAPH_TOP_K
from service.batching.work import NO_DEADLINE, Deadline, DeadlinePassed, Overloaded, Work
from service.contract.adjustment import MIN_TAU, InvalidTau, check_tau
from service.contract.bundle import Bundle
from service.contract.members.switch import Choice
from service.contract.prior import UnknownLabelFrequencies
from service.graph.prior_table import TableFull
from service.graph.session import GraphOutputs
from service.priors.priors import Priors
from service.priors.revisions import ChosenBy, PriorDoesNotFit, PriorRevision, UnknownPrior
from service.priors.rule import source_warnings
from service.repository.served import ServedModel
from service.wire.faults import InvalidParameter, TooLarge
from service.wire.parameters import Parameters

DEFAULT_TOP_K = 5
_NOT_AVAILABLE = (UnknownPrior, PriorDoesNotFit, UnknownLabelFrequencies)
MAX_ANSWER_VALUES = 2_100_000
"""The largest answer, in numbers written as JSON: the probabilities of 2,048 rows of 1,000 classes,
about 40 MiB.
"""
RANKED_VALUES = 4
"""How many numbers a ranked class counts for, with its label."""
_CELLS_A_VALUE = 4
"""This many numbers that the graph computes, and no answer contains, count as one."""


class RowSettings(NamedTuple):
    """The tau and priors of the rows of a request.

    tau: one for all rows, or [n]. prior_of_row: [n] index of each row's prior in `revisions`;
    None: all rows have the first.
    """

    tau: float | NDArray[np.float32]
    revisions: tuple[PriorRevision, ...]
    prior_of_row: NDArray[np.int64] | None = None


class Classifier:
    """Chooses the prior and tau of a request, and makes the work that a batcher takes."""

    def __init__(
        self, priors: Priors, *, tau_cap: float, clock: Callable[[], float] = time.time
    ) -> None:
        """tau_cap: largest tau of a request. clock: seconds since 1970, for schedules."""
        self._tau_cap, self._clock = tau_cap, clock
        self._requested = priors.requested
        self.revision_at_hand = priors.at_hand

    def in_context(
        self, bundle: Bundle, revision: PriorRevision, context: Mapping[str, str] | None
    ) -> PriorRevision:
        """The prior that the context or the schedule of a prior leads to, for one request.

        The context of the prior that is reached is not followed in turn. If that prior is not
        stored, or does not fit the model, `else` applies, and otherwise `revision` itself.
        Raises RevisionNotInMemory where the vectors of that prior must be made first: await
        `revision_for`.
        """
        switch = revision.prior.switch
        if switch is None:
            return revision
        choice, used, missing = switch.choose(context, self._clock()), revision, []
        for name in choice.names:
            try:
                used = self.revision_at_hand(bundle, name)
                break
            except _NOT_AVAILABLE:
                missing.append(name)
        return _led(revision, choice, used, missing)

    async def revision_for(
        self,
        bundle: Bundle,
        wanted: str | dict[str, Any] | None,
        context: Mapping[str, str] | None,
        *,
        deadline: Deadline = NO_DEADLINE,
    ) -> PriorRevision:
        """The prior of a request, and the one that it leads to, fetched or made in a thread.

        Raises as `Priors.requested` does, and DeadlinePassed.
        """
        left = deadline.at - time.monotonic()
        try:
            async with asyncio.timeout(None if left == math.inf else max(0.0, left)):
                revision = await self._requested(bundle, wanted)
                return await self._reached(bundle, revision, context)
        except TimeoutError:
            raise DeadlinePassed(deadline.message(time.monotonic())) from None

    async def _reached(
        self, bundle: Bundle, revision: PriorRevision, context: Mapping[str, str] | None
    ) -> PriorRevision:
        """Follow a context or schedule as `in_context` does, and wait for the vectors of the prior
        it names.
        """
        switch = revision.prior.switch
        if switch is None:
            return revision
        choice, used, missing = switch.choose(context, self._clock()), revision, []
        for name in choice.names:
            try:
                used = await self._requested(bundle, name)
                break
            except _NOT_AVAILABLE:
                missing.append(name)
        return _led(revision, choice, used, missing)

    def admit(
        self,
        model: ServedModel,
        inputs: NDArray[Any],
        parameters: Parameters,
        revision: PriorRevision,
        *,
        deadline: Deadline = NO_DEADLINE,
        full: bool = False,
        is_traffic: bool = True,
    ) -> Work:
        """Make the work of scoring inputs [n, …] with one tau and one prior, for the model's
        batcher.

        The work holds a slot of the model's prior table, which the batcher releases. With `full`,
        all logits and probabilities are returned too. Raises the errors of the parameters, and
        Overloaded.
        """
        bundle = model.bundle
        top_k = parameters.top_k
        if top_k is None:
            top_k = min(DEFAULT_TOP_K, len(bundle.class_names))
        else:
            check_top_k(top_k, len(bundle.class_names))
        tau = bundle.tau if parameters.tau is None else check_tau(parameters.tau, cap=self._tau_cap)
        offset = revision.offset
        if offset is None:
            check_adjustable(bundle, revision, tau)
        full = full or top_k > MAX_GRAPH_TOP_K or revision.prior.costs is not None
        values = len(inputs) * top_k * RANKED_VALUES
        if full:
            values += len(inputs) * len(bundle.class_names) // _CELLS_A_VALUE
        if values > MAX_ANSWER_VALUES:
            raise _too_large(len(inputs))
        try:
            slot = model.table.acquire(revision.key, offset)
        except TableFull as error:
            raise _refusal(model, error) from error
        return Work(
            inputs, tau, slot, (slot,), top_k, full, deadline, is_traffic, values, (revision,)
        )

    def admit_rows(
        self,
        model: ServedModel,
        inputs: NDArray[Any],
        settings: RowSettings,
        *,
        top_k: int,
        values_a_row: int,
        deadline: Deadline = NO_DEADLINE,
        full: bool = False,
    ) -> Work:
        """The work of scoring inputs [n, …], each row with its own tau and prior.

        values_a_row: how many numbers of JSON the answer to one row has. Raises TooLarge, and
        Overloaded.
        """
        full = full or top_k > MAX_GRAPH_TOP_K
        for each in settings.revisions:
            full = full or each.prior.costs is not None
        values = len(inputs) * values_a_row
        if full:
            values += len(inputs) * len(model.bundle.class_names) // _CELLS_A_VALUE
        if values > MAX_ANSWER_VALUES:
            raise _too_large(len(inputs))
        slots = _slots(model, settings.revisions)
        rows = settings.prior_of_row
        slot = slots[0] if rows is None else np.array(slots, np.int64)[rows]
        tau, priors = settings.tau, settings.revisions
        return Work(inputs, tau, slot, slots, top_k, full, deadline, True, values, priors, rows)

    def settings_of(
        self,
        bundle: Bundle,
        tau: float | NDArray[np.float32] | None,
        revisions: Sequence[PriorRevision],
        prior_of_row: NDArray[np.int64] | None = None,
    ) -> RowSettings:
        """The tau and priors of the rows of a request.

        tau is one for all rows, one for each [n], or None for the model's default; without
        prior_of_row all rows have the first prior. Raises InvalidTau and UnknownLabelFrequencies.
        """
        chosen = (
            check_taus(tau, cap=self._tau_cap)
            if isinstance(tau, np.ndarray)
            else self.tau_of(bundle, tau)
        )
        for number, revision in enumerate(revisions):
            if revision.offset is None:
                rows = slice(None) if prior_of_row is None else prior_of_row == number
                largest = chosen if isinstance(chosen, float) else float(chosen[rows].max())
                check_adjustable(bundle, revision, largest)
        return RowSettings(chosen, tuple(revisions), prior_of_row)

    def tau_of(self, bundle: Bundle, tau: float | None) -> float:
        """The tau of a request, or the model's default. Raises InvalidTau."""
        return bundle.tau if tau is None else check_tau(tau, cap=self._tau_cap)


def _led(
    revision: PriorRevision, choice: Choice, used: PriorRevision, missing: Sequence[str]
) -> PriorRevision:
    """Return the prior that is used, and how `revision` led to it. missing: a prior that could not
    be used.
    """
    fallback = choice.fallback or ("prior_not_available" if missing else None)
    warnings = tuple(
        f"prior '{revision.name or 'inline'}' chose prior '{name}', which is not available "
        f"for this model; '{used.name or 'inline'}' was used"
        for name in missing
    )
    found = ChosenBy(revision.name, revision.revision, choice.key, choice.value, fallback, warnings)
    return replace(used, chosen_by=found)


def _slots(model: ServedModel, revisions: Sequence[PriorRevision]) -> tuple[int, ...]:
    """Slots of the model's prior table, one for each revision. Raises TooLarge and Overloaded."""
    table = model.table
    try:
        if len(revisions) == 1:
            return (table.acquire(revisions[0].key, revisions[0].offset),)
        if len(revisions) > table.most_priors:
            raise TooLarge(
                f"the rows name {len(revisions)} different priors; at most {table.most_priors} "
                "fit in memory for this many classes; send fewer at a time"
            )
        return tuple(table.acquire_all([(each.key, each.offset) for each in revisions]))
    except TableFull as error:
        raise _refusal(model, error) from error


def _refusal(model: ServedModel, error: TableFull) -> Overloaded:
    """The error of a request for which the prior table has no room, counted for the model."""
    refusal = Overloaded(str(error))
    model.batcher.refused(refusal)
    return refusal


def _too_large(rows: int) -> TooLarge:
    return TooLarge(
        f"the answer to these {rows} rows would be too large: it may hold {MAX_ANSWER_VALUES:,} "
        f"numbers, or {MAX_ANSWER_VALUES // RANKED_VALUES:,} ranked classes; send fewer rows, ask "
        "for a smaller top_k, or for binary outputs"
    )


def check_taus(taus: NDArray[np.float32], *, cap: float) -> NDArray[np.float32]:
    """Return taus [n]. Raises InvalidTau, which names the first row with a wrong tau."""
    fine = (taus == 0) | ((taus >= np.float32(MIN_TAU)) & (taus <= np.float32(cap)))
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        raise InvalidTau(
            f"row {row}: tau is {taus[row]:g}; expected 0 or a number from {MIN_TAU:g} to {cap:g}"
        )
    return taus


def check_top_k(top_k: int | None, num_classes: int) -> int:
    """Return top_k, by default 5 or the number of classes. Raises InvalidParameter."""
    if top_k is None:
        return min(DEFAULT_TOP_K, num_classes)
    if not 1 <= top_k <= num_classes:
        raise InvalidParameter(
            f"top_k is {top_k}; expected 1 to {num_classes}, the model's number of classes"
        )
    return top_k


def check_adjustable(bundle: Bundle, revision: PriorRevision, tau: float) -> None:
    """Raise UnknownLabelFrequencies when tau needs a source prior that is unknown."""
    if tau and revision.offset is None:
        raise UnknownLabelFrequencies(
            f"model '{bundle.name}' has no class_counts, so tau = {tau:g} cannot be applied: PUT "
            f"label_frequencies to /models/{bundle.name}/priors/{revision.name or 'default'}, "
            "give them inline, or ask for tau=0"
        )


def warnings_of(bundle: Bundle, revision: PriorRevision, tau: float) -> tuple[str, ...]:
    """Warnings about the adjustment of this answer, for its caller."""
    chosen = revision.chosen_by
    own = revision.prior.warnings + (() if chosen is None else chosen.warnings)
    return own + (source_warnings(bundle) if tau else ())


def prior_shown(revision: PriorRevision) -> dict[str, Any]:
    """The prior of an answer: its name and revision, and the context that led to it."""
    shown: dict[str, Any] = {"name": revision.name, "revision": revision.revision}
    if revision.chosen_by is not None:
        shown["context"] = revision.chosen_by.shown()
    return shown


def ranked(
    outputs: GraphOutputs, rows: slice | list[int], top_k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(class indices, probabilities) of rows, each [n, top_k], best first.

    Ties go to the lower index.
    """
    if top_k <= outputs.top_index.shape[1]:
        return outputs.top_index[rows, :top_k], outputs.top_probability[rows, :top_k]
    assert outputs.adjusted_logits is not None
    assert outputs.probabilities is not None
    order = np.argsort(-outputs.adjusted_logits[rows], axis=1, kind="stable")[:, :top_k]
    return order, np.take_along_axis(outputs.probabilities[rows], order, axis=1)
