"""Trains as `training fit` does, and logs the losses, without publishing: several runs in one start
of the processes.
"""

from training.loop.processes import Processes
from training.loop.train import Keeping
from training.run.prepare import prepare
from training.run.recipe_file import make
from training.run.run import fit_network


def train_only(home, runs):
    """Train the runs, by name the settings of a recipe; NAME.jsonl of `home` gets the losses."""
    processes = Processes.join("cpu")
    for name, settings in runs.items():
        recipe = make(None, settings)
        ready = prepare(recipe, part=processes.part)
        keeping = Keeping(log=home / f"{name}.jsonl", quiet=True)
        fit_network(recipe, ready, keeping=keeping, processes=processes)
    processes.wait()
    processes.leave()
