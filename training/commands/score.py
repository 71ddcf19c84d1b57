"""The verb `score`: answers files of unlabelled rows without a server."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from training.commands.flags import place
from training.faults import WrongUse, say

AddVerb = Callable[..., argparse.ArgumentParser]


def add_verb(add: AddVerb) -> None:
    """Declare the verb. add: takes its name, its help text and the function to run."""
    parser = add("score", "Answer files of unlabelled rows, as the service would.", _score)
    parser.set_defaults(
        stopped="; the finished blocks are kept, and the same command goes on with the others"
    )
    parser.add_argument(
        "data",
        metavar="DATA",
        help="a .parquet, .csv, .jsonl, .npz, .npy, .tar file, a folder or a quoted pattern",
    )
    parser.add_argument(
        "--model", type=place, required=True, metavar="models/N/V", help="the published model"
    )
    parser.add_argument(
        "--out",
        type=place,
        required=True,
        metavar="FILE.parquet",
        help="the file to write the answers to",
    )
    parser.add_argument(
        "--tau",
        type=float,
        help="strength of the adjustment: 0, or 1e-6 to 10 (default: the model's default_tau)",
    )
    parser.add_argument(
        "--prior",
        default="uniform",
        help="uniform, training, or a JSON file of a prior or a target (default uniform)",
    )
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="first estimate the class prior of the rows; answer with it if it is usable",
    )
    parser.add_argument(
        "--columns",
        metavar="A,B",
        help="columns that are features (default: those of the training table)",
    )
    parser.add_argument(
        "--keep",
        default="",
        metavar="A,B",
        help="columns to copy into the answers, such as an id (default none)",
    )
    parser.add_argument(
        "--leave-out",
        default="",
        metavar="A,B",
        help="columns to ignore, such as a label (default none)",
    )
    parser.add_argument(
        "--array",
        metavar="NAME",
        help="the array of an .npz file to score (default x, x_test or X)",
    )
    parser.add_argument(
        "--skip-broken",
        action="store_true",
        help="give a row that cannot be read an empty answer, with the reason in the column error",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="best classes to write for each row, with their probabilities (default 0: only the "
        "best)",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="write the probability of every class"
    )
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that score (default 1)"
    )
    parser.add_argument(
        "--engine",
        choices=("processes", "ray"),
        default="processes",
        help="processes of this machine, or Ray Data, which also uses the cluster that RAY_ADDRESS "
        "names (default processes)",
    )
    parser.add_argument(
        "--block-rows",
        type=int,
        default=8192,
        metavar="ROWS",
        help="rows that are read and scored at a time (default 8192)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads of a graph call (default 0: onnxruntime decides, within the limit of a "
        "control group)",
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _broken_rows(result: dict[str, Any]) -> str:
    """How many rows are broken, and the first of them."""
    first = [f"  {each['error']}" for each in result["first_broken"]]
    more = result["broken"] - len(first)
    rest = [f"  … and {more:,} more"] if more else []
    count = f"{result['broken']:,} of {result['n']:,} rows could not be read"
    return "\n".join([f"warning: {count}; their column error says why:", *first, *rest])


def _score(options: argparse.Namespace) -> dict[str, Any]:
    from training.loop.interrupt import stopped_by_sigterm
    from training.run.scoring.score_rows import score_rows
    from training.run.scoring.scorer import Scoring

    for flag, low in (("workers", 1), ("block_rows", 1), ("top_k", 0), ("threads", 0)):
        if getattr(options, flag) < low:
            name = "--" + flag.replace("_", "-")
            raise WrongUse(f"{name} is {getattr(options, flag)}; expected at least {low}")
    begun = time.monotonic()
    shown = begun

    def report(blocks: int, rows: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= 1:
            shown = now
            speed = rows / (now - begun)
            print(  # noqa: T201 - progress for the user
                f"training: {rows} rows in {blocks} blocks, {speed:.0f} rows/s", file=sys.stderr
            )

    with stopped_by_sigterm():
        result = score_rows(
            options.data,
            options.out,
            Scoring(
                model=options.model,
                tau=options.tau,
                prior=options.prior,
                top_k=options.top_k,
                probabilities=options.probabilities,
                threads=options.threads,
            ),
            columns=_names(options.columns) or None,
            keep=_names(options.keep),
            leave_out=_names(options.leave_out),
            array=options.array,
            block_rows=options.block_rows,
            workers=options.workers,
            estimate_first=options.estimate,
            skip_broken=options.skip_broken,
            engine=options.engine,
            report=report,
        )
    if result.get("broken"):
        say(_broken_rows(result))
    return result | {"seconds": round(time.monotonic() - begun, 2)}
