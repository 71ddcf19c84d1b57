"""Stores automatic steps of priors, with the same checks and records as writes by people."""

import asyncio
import logging
from collections.abc import Callable

from service.api.edge.access import audit_line
from service.api.priors.insight import Insight
from service.contract.automatic import AUTHOR
from service.contract.bundle import Bundle
from service.contract.members.body import InvalidPrior
from service.priors.caution import TooManyFlips
from service.priors.changes import Condition
from service.priors.preview import evidence_note
from service.priors.priors import Priors
from service.priors.recent import LogitReservoir
from service.priors.revisions import (
    PriorConflict,
    PriorDoesNotFit,
    StaleRevision,
    StoreUnavailable,
    Written,
)
from service.priors.shift.watch import Automatic, adopted
from service.priors.snapshot import resolve
from service.priors.webhook import Changed

logger = logging.getLogger(__name__)

STEP_SECONDS = 30.0


class AutomaticSteps:
    """Stores the steps that automatic adoption decides on. Create it on the event loop."""

    def __init__(
        self,
        priors: Priors,
        *,
        find_reservoir: Callable[[Bundle], LogitReservoir | None],
        max_flip_share: float,
        announce: Callable[[Changed], None],
    ) -> None:
        """Prepare to store steps.

        find_reservoir: returns the recent logits of a version, or None. max_flip_share: the largest
        share of recent answers that a step may change, as for writes by people. announce: called
        with every change that was stored.
        """
        self._priors, self._announce = priors, announce
        self._insight = Insight(
            priors, _no_model, find_reservoir, tau_cap=1.0, max_flip_share=max_flip_share
        )
        self._loop = asyncio.get_running_loop()

    def take(self, bundle: Bundle, automatic: Automatic) -> None:
        """Take a step. Call it from a thread, not on the event loop; a refusal is logged."""
        step = asyncio.run_coroutine_threadsafe(self._step(bundle, automatic), self._loop)
        try:
            step.result(STEP_SECONDS)
        except StaleRevision:
            pass  # the prior has just been changed: the next step starts from the new one
        except TimeoutError:
            step.cancel()  # otherwise it would be stored later, from an estimate that is old then
            logger.warning(
                "the automatic step of prior %r of model %r did not end within %g s and is given "
                "up; GET its revisions to see whether it was stored all the same",
                automatic.prior, bundle.name, STEP_SECONDS,
            )  # fmt: skip
        except (
            TooManyFlips, StoreUnavailable, InvalidPrior, PriorConflict, PriorDoesNotFit,
        ) as error:  # fmt: skip
            logger.warning(
                "the automatic step of prior %r of model %r was refused and not stored; adopt the "
                "estimate by hand if it is right: %s",
                automatic.prior, bundle.name, error,
            )  # fmt: skip

    async def _step(self, bundle: Bundle, automatic: Automatic) -> Written:
        name, note = automatic.prior, evidence_note(automatic.found)
        if automatic.step.shortened:
            note += f"; shortened to {automatic.step.length:.3f} nats (largest_step)"
        body = adopted(automatic, bundle.class_names, note=note)
        candidate = await asyncio.to_thread(resolve, bundle, name, 0, body, None)
        flips = await self._insight.flips(bundle, name, candidate, force=False)
        condition = Condition(if_match=frozenset({automatic.revision}))
        written = await self._priors.put(bundle, name, body, by=AUTHOR, condition=condition)
        if written.changed:
            audit_line(
                AUTHOR,
                None,
                action="auto-adopt",
                model=bundle.name,
                name=name,
                revision=written.entry.revision,
                decisions_changed=flips.share,
            )
            self._announce(Changed("auto-adopt", written.entry, flips.share))
        return written


def _no_model(name: str | None) -> Bundle:
    raise LookupError(f"an automatic step brings its own model; nothing looks up '{name}'")
