"""The processes that train one network: a single one, or several that torchrun has started."""

import logging
import os
import sys
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # not typed
from torch.distributed.rendezvous import rendezvous

from training.data.order import Part
from training.faults import WrongUse
from training.loop.sync_norm import share_batch_norms

JOIN_SECONDS, POLL_SECONDS = 600, 0.05
WAIT = timedelta(hours=6)  # how long the others wait while the first evaluates and exports


@dataclass(frozen=True)
class Processes:
    """One of the `world` processes. Only the first, rank 0, writes files and shows progress."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device: str) -> "Processes":
        """Join the processes that torchrun has started, or run alone.

        device: auto, cpu, cuda or cuda:N. Raises WrongUse for another one, or one that is not here.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        chosen = _device(device)
        if world == 1:
            return cls(chosen)
        if not distributed.is_initialized():
            backend = "nccl" if chosen.type == "cuda" else "gloo"
            store, rank, _ = next(rendezvous("env://"))
            distributed.init_process_group(
                backend, store=_own_store(store, rank, world), rank=rank, world_size=world,
                timeout=WAIT,
            )  # fmt: skip
        return cls(chosen, rank=distributed.get_rank(), world=world)

    @property
    def part(self) -> Part:
        """The part of each batch that this process computes."""
        return Part(self.rank, self.world)

    @property
    def first(self) -> bool:
        """Whether this is the first process: the one that writes files and shows progress."""
        return self.rank == 0

    def spread(self, network: nn.Module) -> nn.Module:
        """Wrap the network so that its gradients are averaged over the processes."""
        if self.world == 1:
            return network
        if self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        else:
            network = share_batch_norms(network, world=self.world)
        return nn.parallel.DistributedDataParallel(network)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, in the same shape."""
        if self.world > 1:
            distributed.all_reduce(values)
            values /= self.world
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return every process's value in order of rank; any but the first gets only its own."""
        if self.world == 1:
            return [value]
        found: list[Any] | None = [None] * self.world if self.first else None
        distributed.gather_object(value, found)
        return found or [value]

    def seed(self, seed: int) -> None:
        """Seed torch's generator from `seed` and rank; the first process keeps its state."""
        if not self.first:
            torch.manual_seed(
                int(np.random.SeedSequence([seed, 4, self.rank]).generate_state(1)[0])
            )

    def wait(self) -> None:
        """Wait until every process gets here; one that exits early may abort the others."""
        if self.world > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Leave the process group."""
        if self.world > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


def _own_store(store: Store, rank: int, world: int) -> Store:
    """Agree with the other processes of this attempt on a part of the store that is theirs alone.

    torchrun gives the processes of every attempt the same store (seen with torch 2.13). A process
    that restarts would read where those of the attempt before listened, and hang or fail. So the
    first process names the attempt, and the others answer under that name. A name from an earlier
    attempt has other members. Raises torch's DistStoreError, or TimeoutError, if a process does not
    come.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("attempt", own)
        members = [store.get(f"{own}/{other}").decode() for other in range(1, world)]
        store.set(f"{own}/members", " ".join(members))
        return PrefixStore(own, store)
    deadline = time.monotonic() + JOIN_SECONDS
    while time.monotonic() < deadline:
        attempt = store.get("attempt").decode()
        store.set(f"{attempt}/{rank}", own)
        known = store.check([f"{attempt}/members"])
        if known and own in store.get(f"{attempt}/members").decode().split():
            return PrefixStore(attempt, store)
        time.sleep(POLL_SECONDS)
    raise TimeoutError(
        f"process {rank} of {world} waited {JOIN_SECONDS} s for the first one to start; see the "
        "output of the process with RANK=0, and start all of them again"
    )


def end_now(status: int) -> NoReturn:
    """Exit without torch's teardown.

    On a busy machine the teardown has aborted a process after all work was done.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise WrongUse(
            f"--device {name}: torch {torch.__version__} sees no CUDA device here; use cpu or auto"
        )
    if name == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return device
    if name != "cpu" and not name.startswith("cuda:"):
        raise WrongUse(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise WrongUse(
            f"--device {name}: {error}; expected a device that this machine has, or auto"
        ) from error
