"""The verb `compare` of the `training` command."""

import argparse
import sys
from collections.abc import Callable
from typing import Any

from training.commands.choices import NETWORKS, listing, methods, recipes
from training.commands.flags import add_cache_flag, add_run_flags, at_least, place, recipe_of
from training.faults import WrongUse


def add_verb(add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the verb. add_verb: takes its name, its help text and the function to run."""
    parser = add_verb(
        "compare",
        "Methods x seeds on one data set: the paper's table and figures. After an interruption, "
        "the same command continues.",
        _compare,
    )
    parser.set_defaults(
        records=True,
        stopped="; the finished runs are kept, and the same command goes on with the others",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = listing(methods=methods(), networks=NETWORKS, recipes=recipes())
    parser.add_argument(
        "--methods",
        default="all",
        help="all, or names of the methods below, separated by commas (default all)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        metavar="N",
        help="runs of each method, with the seeds 0 to N - 1 (default 5)",
    )
    parser.add_argument(
        "--out", type=place, required=True, metavar="DIR", help="folder for the runs and the report"
    )
    add_run_flags(parser)
    add_cache_flag(parser)
    parser.add_argument(
        "--device",
        default="auto",
        help="where to train: cpu, cuda, cuda:N, or auto: a GPU if there is one (default auto)",
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="threads of each run on the CPU (default: the processors divided by --jobs; of a "
        "single job: torch decides)",
    )
    parser.add_argument(
        "--jobs",
        type=at_least(1),
        metavar="N",
        help="runs trained at the same time, each in a process of its own (default: one for each "
        "processor, as far as memory allows; 1 on a GPU, under torchrun and for image files)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    from training.loop.processes import Processes
    from training.studies.compare import compare
    from training.studies.methods import choose

    if options.seeds < 1:
        raise WrongUse(f"--seeds {options.seeds}: expected at least 1")
    return compare(
        recipe_of(options),
        methods=choose(options.methods),
        seeds=range(options.seeds),
        out=options.out,
        processes=Processes.join(options.device),
        say=lambda text: print(text, file=sys.stderr),  # noqa: T201 - a command speaks
        quiet=options.quiet,
        command=options.command,
        cache=options.cache,
        jobs=options.jobs,
        threads=options.threads,
    )
