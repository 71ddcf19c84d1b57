"""`training fit` on a Ray cluster: python -m deploy.ray.train --workers 4 -- --name shop --data … .

Ray Train starts the processes, and restarts all of them when one is lost. Add `--resume`, and put
`--runs` and `--models` on a file system that every node mounts: `fit` itself writes and reads the
checkpoints.
"""

import argparse
import sys
from typing import Any

from ray import train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def fit(config: dict[str, Any]) -> None:
    """Run `training fit` as one of the processes of a group."""
    from training.commands.cli import main as run_verb

    status = run_verb(["fit", *config["arguments"]])
    if status:
        raise RuntimeError(f"training fit ended with exit status {status}; its log says why")
    train.report({"status": status})


def main(arguments: list[str]) -> int:
    """Train on the cluster; return 0 once the model is published."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--storage", required=True, help="a folder of all nodes, for Ray itself")
    parser.add_argument("fit", nargs="+", help="after --: the arguments of `training fit`")
    options = parser.parse_args(arguments)
    trainer = TorchTrainer(
        fit,
        train_loop_config={"arguments": options.fit},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(
            storage_path=options.storage, failure_config=FailureConfig(max_failures=10)
        ),
    )
    trainer.fit()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
