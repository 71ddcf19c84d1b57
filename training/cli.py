"""The `training` command: verbs, flags, exit codes. Results go to stdout, everything else to stderr."""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import comparing, evidence
from training.faults import BadData, RunFailed, WrongUse, say

if TYPE_CHECKING:  # importing it takes torch, and --help should not wait for torch
    from training.settings import Recipe

Verb = Callable[[argparse.Namespace], dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0 done, 2 wrong use, 1 failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    verb: Verb = options.run
    try:
        result = verb(options)
    except KeyboardInterrupt:
        return _report("stopped", 1)
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        return _report(str(error), code)
    if result:
        _print(result, options)
    return 0


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can act upon; None for a fault of ours, which deserves its traceback."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    if type(error).__name__ in ("InvalidObjective", "InvalidTau"):
        return WrongUse.exit_code
    if type(error).__name__ == "CalibrationRefused":
        return RunFailed.exit_code
    if isinstance(error, MemoryError):
        return BadData.exit_code
    return None


def _report(message: str, code: int) -> int:
    say(message)
    return code


def _print(result: dict[str, Any], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))  # noqa: T201 - the result
        return
    from training.tables import table

    print(table(result), file=sys.stderr)  # noqa: T201 - for people
    if "bundle" in result:
        print(result["bundle"])  # noqa: T201 - for scripts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="training",
        description="Train, calibrate and publish classifiers for long-tailed data.",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    _add_fit(verbs)
    _add_evaluate(verbs)
    _add_data(verbs)
    add_verb = functools.partial(_verb, verbs)
    evidence.add_verbs(add_verb)
    comparing.add_verb(add_verb, add_flags=_add_run_flags, recipe_of=_recipe)
    return parser


def _verb(verbs: Any, name: str, text: str, run: Verb) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _add_fit(verbs: Any) -> None:
    parser = _verb(verbs, "fit", "Train a model and publish it.", _fit)
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE.toml",
        help="settings to start from; the other flags override them",
    )
    parser.add_argument("--name", help="of the model; default: from the recipe or the data")
    parser.add_argument("--description", help="free text for model.json")
    _add_data_flags(parser, required=False)
    _add_image_flags(parser)
    method = parser.add_argument_group("method")
    method.add_argument(
        "--network",
        metavar="NET",
        help="linear, mlp, text, cnn, cnn-direct, resnet32, released-resnet32 or module:function (default mlp; text for texts)",
    )
    method.add_argument("--loss", help="erm, logit-adjusted, … (default erm)")
    method.add_argument(
        "--loss-tau", type=float, help="tau inside a logit-adjusted loss (default 1)"
    )
    method.add_argument(
        "--loss-option",
        action="append",
        metavar="NAME=VALUE",
        dest="loss_options",
        type=_option,
        help="of a loss, as in max_margin=0.3",
    )
    method.add_argument("--sampler", help="uniform, balanced, square-root, … (default uniform)")
    method.add_argument(
        "--sampler-option",
        action="append",
        metavar="NAME=VALUE",
        dest="sampler_options",
        type=_option,
        help="of a sampler, as in switch=0.8",
    )
    method.add_argument(
        "--publish-tau",
        choices=("one", "chosen"),
        help="the tau that the service uses when none is asked for",
    )
    _add_optimisation_flags(parser.add_argument_group("optimisation"))
    running = parser.add_argument_group("running")
    running.add_argument(
        "--models", type=Path, default=Path("models"), help="where to publish (default models)"
    )
    running.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        help="where checkpoints and logs go (default runs)",
    )
    running.add_argument(
        "--resume", action="store_true", help="go on from this run's checkpoint, if there is one"
    )
    running.add_argument(
        "--checkpoint-seconds", type=float, default=20.0, help="between checkpoints (default 20)"
    )
    running.add_argument(
        "--checkpoint-steps", type=int, help="between checkpoints, instead of seconds"
    )
    running.add_argument(
        "--workers", type=int, default=2, help="processes that decode images (default 2; 0: none)"
    )
    running.add_argument(
        "--in-memory",
        action=argparse.BooleanOptionalAction,
        help="decode images once and keep them (default: when they fit 256 MB)",
    )
    running.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or cuda:N (default auto)"
    )
    running.add_argument("--threads", type=int, help="of the CPU (default: torch decides)")
    running.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write TensorBoard's files there"
    )
    running.add_argument(
        "--samples",
        type=int,
        default=12,
        help="test inputs that report.json shows (default 12; 0: none)",
    )
    running.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_run_flags(parser: argparse.ArgumentParser) -> None:
    """What shapes every run of a comparison: the data, the network and how it is optimised."""
    parser.add_argument(
        "--recipe", metavar="NAME|FILE.toml", help="settings to start from, without its loss"
    )
    _add_data_flags(parser, required=False)
    _add_image_flags(parser)
    parser.add_argument("--network", metavar="NET", help="as fit takes it")
    _add_optimisation_flags(parser.add_argument_group("optimisation"))


def _recipe(options: argparse.Namespace) -> "Recipe":
    from training import recipe_file

    return recipe_file.make(options.recipe, _given(options, recipe_file.FIELDS))


def _add_data_flags(parser: argparse.ArgumentParser, *, required: bool) -> None:
    group = parser.add_argument_group("data")
    if required:
        group.add_argument("data", metavar="SPEC", help="what to read")
    else:
        group.add_argument(
            "--data", metavar="SPEC", help="what to train on; docs/training.md lists the forms"
        )
    group.add_argument(
        "--profile", choices=("exp", "step"), help="make the training rows long-tailed"
    )
    group.add_argument(
        "--imbalance-ratio",
        type=float,
        help="of the profile: largest class over smallest (default 100)",
    )
    group.add_argument(
        "--max-per-class",
        type=int,
        help="of the profile: rows of the largest class (default: all that every class has)",
    )
    group.add_argument(
        "--validation-per-class",
        type=int,
        help="rows to set aside; 0: none, so temperature and tau stay 1 (default: a tenth of each class, a fifth of small data)",
    )
    group.add_argument("--seed", type=int, help="of everything that is drawn (default 0)")


def _add_image_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images in files")
    group.add_argument(
        "--image-size",
        type=int,
        help="pixels a side (default: the images' own, if they are alike and small, else 224)",
    )
    group.add_argument(
        "--resize",
        type=_resize,
        help="stretch, crop, or pixels of the shorter side before the centre is cut out",
    )
    group.add_argument("--color", choices=("RGB", "L"), help="default RGB")
    group.add_argument(
        "--image-mean", type=_numbers, help="of each channel, on the scale 0 … 1, as in 0.5,0.5,0.5"
    )
    group.add_argument("--image-std", type=_numbers, help="of each channel")


def _add_optimisation_flags(group: Any) -> None:
    group.add_argument("--epochs", type=float, help="length (default 20, and at least 1,500 steps)")
    group.add_argument("--steps", type=int, help="length, instead of epochs")
    group.add_argument("--batch", type=int, help="rows a step, over all processes (default 128)")
    group.add_argument(
        "--accumulate", type=int, help="pieces that a batch is computed in (default 1)"
    )
    group.add_argument("--optimiser", choices=("sgd", "adamw"), help="default sgd")
    group.add_argument("--lr", type=float, help="learning rate (default 0.05)")
    group.add_argument("--momentum", type=float, help="default 0.9")
    group.add_argument("--nesterov", action=argparse.BooleanOptionalAction, help="default on")
    group.add_argument("--weight-decay", type=float, help="default 5e-4")
    group.add_argument(
        "--decay-norms",
        action=argparse.BooleanOptionalAction,
        help="decay biases and normalisation layers, too (default on)",
    )
    group.add_argument("--schedule", choices=("steps", "cosine", "constant"), help="default steps")
    group.add_argument(
        "--warmup", type=float, help="steps, or a share of the run below 1 (default 0.05)"
    )
    group.add_argument(
        "--milestones", type=_numbers, help="where the rate drops, as in 0.6,0.85 or 12000,14000"
    )
    group.add_argument(
        "--drop", type=float, help="what the rate is multiplied by there (default 0.1)"
    )
    group.add_argument(
        "--augment",
        choices=("none", "flip", "crop-flip", "resized-crop-flip"),
        help="of images (default none)",
    )
    group.add_argument("--pad", type=int, help="pixels that crop-flip shifts by (default 4)")
    group.add_argument("--precision", choices=("fp32", "fp64", "bf16", "fp16"), help="default fp32")


def _add_evaluate(verbs: Any) -> None:
    parser = _verb(verbs, "evaluate", "Score a published model through onnxruntime.", _evaluate)
    parser.add_argument("model", type=Path, metavar="models/N/V", help="the folder")
    parser.add_argument("--data", required=True, metavar="SPEC", help="what to score it on")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="test", help="default test"
    )
    parser.add_argument("--tau", type=float, help="default: the model's default_tau")
    parser.add_argument(
        "--target",
        default="uniform",
        help="uniform, training, FILE.json, forward-K or backward-K (default uniform)",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="of the CPU (default: onnxruntime decides)"
    )


def _add_data(verbs: Any) -> None:
    parser = _verb(verbs, "data", "Tell what is in a data specification.", _data)
    _add_data_flags(parser, required=True)
    _add_image_flags(parser)


def _fit(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from training.loop import Keeping
    from training.processes import Processes
    from training.recipe import Running, run

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    recipe = _recipe(options)
    keeping = Keeping(
        resume=options.resume,
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
    )
    processes = Processes.join(options.device)
    try:
        return run(recipe, running=running, keeping=keeping, processes=processes)
    finally:
        processes.leave()


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from training.published import evaluate

    return evaluate(
        options.model,
        options.data,
        split=options.split,
        tau=options.tau,
        target=options.target,
        threads=options.threads,
    )


def _data(options: argparse.Namespace) -> dict[str, Any]:
    from training import recipe_file
    from training.describe import describe

    return describe(recipe_file.make(None, _given(options, recipe_file.FIELDS)))


def _given(options: argparse.Namespace, fields: Any) -> dict[str, Any]:
    """The recipe's settings among the flags, those that were given."""
    given = {
        name: getattr(options, name) for name in fields if getattr(options, name, None) is not None
    }
    given.pop("recipe", None)
    for name in ("loss_options", "sampler_options"):
        if name in given:
            given[name] = dict(given[name])
    return given


def _option(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def _resize(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)
