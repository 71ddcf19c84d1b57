"""Trains as `training fit` does, and logs the losses, without publishing: several runs in one start
of the processes.

torchrun … -m tests.support.train_only HOME '{"NAME": {settings of a recipe}, …}'
"""

import json
import sys
from pathlib import Path

import torch

from training.loop.processes import Processes, end_now
from training.loop.train import Keeping
from training.run.prepare import prepare
from training.run.recipe_file import make
from training.run.run import fit_network


def train_only(home, runs, processes):
    for name, settings in runs.items():
        recipe = make(None, settings)
        ready = prepare(recipe, part=processes.part)
        keeping = Keeping(log=home / f"{name}.jsonl", quiet=True)
        fit_network(recipe, ready, keeping=keeping, processes=processes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    joined = Processes.join("cpu")
    train_only(Path(sys.argv[1]), json.loads(sys.argv[2]), joined)
    joined.wait()
    joined.leave()
    end_now(0)
