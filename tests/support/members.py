"""Starts the processes of one training run as torchrun does, in a fraction of the time.

Importing torch takes seconds, so that one process imports it, and each member is forked from it.
"""

import os
from multiprocessing import forkserver, get_context
from unittest import mock

import torch
from torch.distributed import TCPStore

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.members", "training.run.run"])


def open_store():
    """The store over which members find each other, as torchrun opens one for all attempts."""
    return TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)


def start_member(store, rank, target, *arguments, world=2):
    """Start `target(*arguments)` in the member of this rank; its exit status is what it returns."""
    with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):
        forkserver.ensure_running()
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    given = {"TORCHELASTIC_USE_AGENT_STORE": "True"} | address | ranks
    member = CONTEXT.Process(target=_run, args=(given, target, arguments), daemon=True)
    member.start()
    return member


def _run(environment, target, arguments):
    os.environ.update(environment)
    torch.set_num_threads(1)
    os._exit(target(*arguments) or 0)
