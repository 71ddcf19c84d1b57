"""The verb `compare` of the `training` command."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.faults import WrongUse

if TYPE_CHECKING:  # importing it takes torch, and --help should not wait for torch
    from training.settings import Recipe


def add_verb(
    add_verb: Callable[..., argparse.ArgumentParser],
    *,
    add_flags: Callable[[argparse.ArgumentParser], None],
    recipe_of: Callable[[argparse.Namespace], "Recipe"],
) -> None:
    """Declare the verb. add_flags declares what shapes a run; recipe_of makes a recipe of those flags."""
    parser = add_verb(
        "compare",
        "Methods x seeds on one data set: the paper's table and figures. The same command goes on after an interruption.",
        lambda options: _compare(options, recipe_of),
    )
    parser.add_argument("--methods", default="all", help="all, or names with commas (default all)")
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, … (default 5)")
    parser.add_argument("--out", type=Path, required=True, help="folder of runs and report")
    add_flags(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: torch decides)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _compare(
    options: argparse.Namespace, recipe_of: Callable[[argparse.Namespace], "Recipe"]
) -> dict[str, Any]:
    import torch

    from training.compare import compare
    from training.methods import choose
    from training.processes import Processes

    if options.seeds < 1:
        raise WrongUse(f"--seeds {options.seeds}: expected at least 1")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return compare(
        recipe_of(options),
        methods=choose(options.methods),
        seeds=range(options.seeds),
        out=options.out,
        processes=Processes.join(options.device),
        say=lambda text: print(text, file=sys.stderr),  # noqa: T201 - a command speaks
        quiet=options.quiet,
    )
