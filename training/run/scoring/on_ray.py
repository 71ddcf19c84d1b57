"""Runs the shares of a scoring run on Ray Data, on one machine or on a cluster.

Ray gives shares to processes, and those of a lost process to another one. A repeated share skips
the blocks that already have a part file, so each block is scored exactly once.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any, Protocol

from training.faults import RunFailed, WrongUse

SHARES_OF_A_WORKER = 8
"""Shares per process. With several, those of a lost process are divided among the others."""


class Share(Protocol):
    """A picklable share of the blocks."""

    def run(self) -> None:
        """Score the blocks of this share that have no part file yet."""


def run_on_ray(shares: Sequence[Share], *, workers: int) -> None:
    """Run the shares on `workers` processes of Ray.

    The environment variable RAY_ADDRESS names a running cluster; without it, Ray starts on this
    machine. Raises WrongUse if Ray is not installed, RunFailed if a share fails.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise WrongUse("--engine ray needs Ray: pip install 'priordial[ray]'") from None

    class Runner:
        """A process of the pool."""

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            for number in batch["share"]:
                shares[int(number)].run()
            return batch

    if not ray.is_initialized():
        cluster = os.environ.get("RAY_ADDRESS")
        more: dict[str, Any] = {} if cluster else {"include_dashboard": False}
        ray.init(address=cluster, log_to_driver=False, logging_level=logging.WARNING, **more)
    items = [{"share": number} for number in range(len(shares))]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        Runner,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    try:
        done = dataset.materialize().count()
    except ray.exceptions.RayError as error:
        raise RunFailed(
            f"scoring on Ray failed: {str(error).splitlines()[-1]}; finished shares are kept: once "
            "this is fixed, run the command again"
        ) from error
    if done != len(shares):
        raise RunFailed(
            f"scoring on Ray ended with {done} of {len(shares)} shares; run the command again"
        )
