"""The verb `fit` of the `training` command."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.contract.resources import available_threads
from training.commands.choices import LOSSES, NETWORKS, SAMPLERS, listing, recipes
from training.commands.flags import (
    add_cache_flag,
    add_data_flags,
    add_image_flags,
    add_optimisation_flags,
    add_seed_flag,
    at_least,
    name_and_number,
    place,
    recipe_of,
    seconds,
)
from training.faults import say


def add_verb(add_verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Declare the verb. add_verb: takes its name, its help text and the function to run."""
    parser = add_verb("fit", "Train a model and publish it.", _fit)
    parser.set_defaults(
        publishes=True,
        records=True,
        stopped="; the same command starts again, or with --resume goes on from the last "
        "checkpoint, if there is one",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = listing(networks=NETWORKS, losses=LOSSES, samplers=SAMPLERS, recipes=recipes())
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE.toml",
        help="one of the recipes below, or a file; the other flags override its settings (default "
        "none)",
    )
    parser.add_argument(
        "--name",
        help="name of the model: letters, digits, '.', '_', '-', at most 64 (default: from the "
        "recipe or the data)",
    )
    parser.add_argument(
        "--description", metavar="TEXT", help="free text for model.json (default none)"
    )
    add_seed_flag(parser)
    add_data_flags(parser, required=False)
    add_image_flags(parser)
    _add_method_flags(parser.add_argument_group("method"))
    add_optimisation_flags(parser.add_argument_group("optimisation"))
    _add_running_flags(parser.add_argument_group("running"))


def _add_method_flags(method: Any) -> None:
    method.add_argument(
        "--network",
        metavar="NET",
        help="one of the networks below (default auto)",
    )
    method.add_argument(
        "--init",
        metavar="models/M/N|FILE.pt",
        help="start from the weights of a published model, or of a state dict for the same network "
        "(default: random weights)",
    )
    method.add_argument(
        "--freeze",
        type=lambda text: tuple(part for part in text.split(",") if part),
        metavar="PART,PART",
        help="do not train the parameters whose names begin with one of these prefixes; "
        "all-but-last: all before the last layer (default: train all)",
    )
    method.add_argument(
        "--lr-of",
        action="append",
        type=name_and_number,
        metavar="PART=FACTOR",
        help="factor of the learning rate, above 0, for the parameters whose names begin with this "
        "prefix, as in conv1=0.1; may be repeated",
    )
    method.add_argument(
        "--features-once",
        action=argparse.BooleanOptionalAction,
        help="compute the features before the last layer once, and fit only that layer, by lbfgs "
        "(default off)",
    )
    method.add_argument("--loss", help="one of the losses below (default erm)")
    method.add_argument(
        "--loss-tau",
        type=float,
        metavar="TAU",
        help="tau inside a logit-adjusted loss, 0 to 10 (default 1)",
    )
    method.add_argument(
        "--loss-option",
        action="append",
        metavar="NAME=VALUE",
        dest="loss_options",
        type=name_and_number,
        help="an option of the loss, such as max_margin=0.3; may be repeated; docs/methods.md has "
        "the list",
    )
    method.add_argument("--sampler", help="one of the samplers below (default uniform)")
    method.add_argument(
        "--sampler-option",
        action="append",
        metavar="NAME=VALUE",
        dest="sampler_options",
        type=name_and_number,
        help="an option of the sampler, such as switch=0.8; may be repeated",
    )
    method.add_argument(
        "--afterwards",
        choices=("nothing", "weight-norm", "crt", "lws"),
        help="change the last layer after training: normalise its weights, train it again on "
        "balanced batches (crt), or learn a scale for each class (lws) (default nothing)",
    )
    method.add_argument(
        "--norm-tau",
        type=float,
        metavar="TAU",
        help="tau of --afterwards weight-norm, 0 to 10 (default: the best on the validation split)",
    )
    method.add_argument(
        "--refit",
        action=argparse.BooleanOptionalAction,
        help="train the network that validation chose again on all rows, its validation rows "
        "included (default: with --network auto, texts, and fewer than 2,000 rows of other data)",
    )
    method.add_argument(
        "--publish-tau",
        choices=("one", "chosen"),
        help="the published model's default_tau, for requests that name none: 1, or the best on "
        "validation (default one)",
    )


def _add_running_flags(running: Any) -> None:
    running.add_argument(
        "--models",
        type=place,
        default=Path("models"),
        metavar="DIR",
        help="folder in which the model is published as DIR/NAME/VERSION (default models)",
    )
    running.add_argument(
        "--runs",
        type=place,
        default=Path("runs"),
        metavar="DIR",
        help="folder for checkpoints and logs (default runs)",
    )
    unfinished = running.add_mutually_exclusive_group()
    unfinished.add_argument(
        "--resume", action="store_true", help="continue from this run's checkpoint, if there is one"
    )
    unfinished.add_argument(
        "--restart", action="store_true", help="discard this run's checkpoint, if there is one"
    )
    running.add_argument(
        "--checkpoint-seconds",
        type=seconds,
        default=20.0,
        metavar="SECONDS",
        help="seconds between checkpoints, 0 or more (default 20)",
    )
    running.add_argument(
        "--checkpoint-steps",
        type=at_least(1),
        metavar="N",
        help="steps between checkpoints, in place of --checkpoint-seconds",
    )
    running.add_argument(
        "--workers",
        type=at_least(0),
        default=2,
        metavar="N",
        help="processes that decode images (default 2; 0: the training process decodes them)",
    )
    running.add_argument(
        "--in-memory",
        action=argparse.BooleanOptionalAction,
        help="decode images once and keep them in memory (default: if they fit into 256 MB)",
    )
    add_cache_flag(running)
    running.add_argument(
        "--device",
        default="auto",
        help="where to train: cpu, cuda, cuda:N, or auto: a GPU if there is one (default auto)",
    )
    running.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="threads on the CPU (default: torch decides, within the limit of a control group)",
    )
    running.add_argument(
        "--tensorboard",
        type=place,
        metavar="DIR",
        help="folder for TensorBoard's event files (default: none are written)",
    )
    running.add_argument(
        "--samples",
        type=at_least(0),
        default=12,
        metavar="N",
        help="test inputs to keep in report.json, for the console (default 12; 0: none)",
    )
    running.add_argument("--quiet", action="store_true", help="show no progress bar")


def _fit(options: argparse.Namespace) -> dict[str, Any]:
    if not options.quiet:
        say("loading torch")
    from training.loop.interrupt import stopped_by_sigterm

    with stopped_by_sigterm():  # outside the steps, where it ends the run after a checkpoint
        return _run(options)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from training.loop.processes import Processes
    from training.loop.progress import stage
    from training.loop.train import Keeping
    from training.run.run import Running, answer, run

    torch.set_num_threads(options.threads or min(torch.get_num_threads(), available_threads()))
    recipe = recipe_of(options)
    keeping = Keeping(
        resume=options.resume,
        restart=options.restart,
        checkpoint_seconds=options.checkpoint_seconds,
        checkpoint_steps=options.checkpoint_steps,
        tensorboard=options.tensorboard,
        quiet=options.quiet,
    )
    running = Running(
        models=options.models,
        runs=options.runs,
        samples=options.samples,
        workers=options.workers,
        in_memory=options.in_memory,
        cache=options.cache,
        command=options.command,
    )
    stage(f"reading {recipe.data}", quiet=options.quiet)
    processes = Processes.join(options.device)
    try:
        finished = run(recipe, running=running, keeping=keeping, processes=processes)
        processes.wait()
        return answer(finished) if finished else {}
    finally:
        processes.leave()
