"""The verbs `evaluate`, `synthetic` and `estimate` of the `training` command."""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from training.commands.flags import at_least, place
from training.faults import WrongUse, writing_to

AddVerb = Callable[..., argparse.ArgumentParser]


def add_verbs(add_verb: AddVerb) -> None:
    """Declare the verbs. add_verb: takes a name, a help text and the function to run."""
    _add_evaluate(add_verb)
    synthetic = add_verb(
        "synthetic", "The paper's synthetic experiment (Fig. 2), analytic errors.", _synthetic
    )
    synthetic.set_defaults(records=True)
    synthetic.add_argument(
        "--out", type=place, required=True, metavar="DIR", help="folder for the report and figures"
    )
    synthetic.add_argument(
        "--n-train",
        type=int,
        default=10_000,
        metavar="N",
        help="training points of a trial, at least 100 (default 10,000)",
    )
    synthetic.add_argument(
        "--trials", type=int, default=100, metavar="N", help="trials, at least 2 (default 100)"
    )
    synthetic.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="seed of all draws (default 0)"
    )
    estimate = add_verb(
        "estimate", "Estimate the class prior of data without using their labels.", _estimate
    )
    estimate.add_argument(
        "model", type=place, metavar="models/N/V", help="folder of the published model's version"
    )
    estimate.add_argument(
        "--data", required=True, metavar="SPEC", help="unlabelled data whose class mix is estimated"
    )
    estimate.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="rows to use (default: test, or all rows of new data without splits)",
    )
    estimate.add_argument(
        "--held-out",
        metavar="SPEC",
        help="labelled data whose val split calibrates the model (default: the model's own "
        "estimation block, or --data where it has none)",
    )


def _add_evaluate(add_verb: AddVerb) -> None:
    parser = add_verb("evaluate", "Score a published model through onnxruntime.", _evaluate)
    parser.add_argument(
        "model", type=place, metavar="models/N/V", help="folder of the published model's version"
    )
    parser.add_argument(
        "--data", required=True, metavar="SPEC", help="labelled data to score the model on"
    )
    parser.add_argument(
        "--split",
        choices=("train", "val", "test"),
        help="rows to use (default: test, or all rows of new data without splits)",
    )
    parser.add_argument(
        "--tau",
        type=float,
        help="strength of the adjustment: 0, or 1e-6 to 10 (default: the model's default_tau)",
    )
    parser.add_argument(
        "--target",
        default="uniform",
        help="class mix to adjust to and to weight the rows by: uniform, training or a JSON file, "
        "or forward-K or backward-K: test rows with a long tail of ratio K (default uniform)",
    )
    parser.add_argument(
        "--threads",
        type=at_least(0),
        default=0,
        help="threads on the CPU (default 0: onnxruntime decides, within the limit of a control "
        "group)",
    )
    parser.add_argument(
        "--publish",
        action="store_true",
        help="also calibrate the model on these data, and publish its next version with a report",
    )


def _evaluate(options: argparse.Namespace) -> dict[str, Any]:
    from training.commands.calibrate import calibrated
    from training.run.published import Published, evaluate

    found = evaluate(
        options.model,
        options.data,
        split=options.split,
        tau=options.tau,
        target=options.target,
        threads=options.threads,
    )
    if options.publish:
        model = Published.open(options.model)
        found["published"] = calibrated(
            model, options.data, split=None, command=options.command, quiet=True
        )["bundle"]
    return found


def _synthetic(options: argparse.Namespace) -> dict[str, Any]:
    from training.studies import synthetic, synthetic_report

    if options.n_train < 100 or options.trials < 2:
        raise WrongUse("synthetic needs --n-train of at least 100 and --trials of at least 2")
    results = synthetic.run(n_train=options.n_train, trials=options.trials, seed=options.seed)
    with writing_to(options.out):
        synthetic_report.write(results, options.out, command=options.command)
    return synthetic.summary(results)


def labelled_rows(model: Any, options: argparse.Namespace, *, labelled: bool) -> Any:
    """Load the labelled rows for calibration: the validation rows, or all rows of new data.

    labelled: whether --data has labels. Raises WrongUse when there are no labelled rows.
    """
    if options.held_out is None:
        if not labelled:
            raise WrongUse(
                f"{options.data} has no labels, so give --held-out: labelled rows that the model "
                "was not trained on"
            )
        return model.rows(options.data, split="val")
    data, rows = model.rows(options.held_out, split=None)
    if data.origin.get("sha256") in (None, model.known.sha256) or data.val is not None:
        data, rows = model.rows(options.held_out, split="val", quiet=True)
    if not data.labelled:
        raise WrongUse(f"--held-out {options.held_out}: has no labels; give labelled rows")
    return data, rows


def _estimate(options: argparse.Namespace) -> dict[str, Any]:
    from training.run.published import Published
    from training.scores.estimate import HeldOut, estimate

    model = Published.open(options.model)
    counts = model.bundle.class_counts
    data, unlabelled = model.rows(options.data, split=options.split)
    model.say_which(data, unlabelled, split=options.split)
    calibration = model.bundle.estimation
    if options.held_out is not None or calibration is None:
        log_source = model.training_source_prior()
        if log_source is None:
            raise WrongUse(
                f"{options.model} has no class_counts, so its source prior is unknown; measure it "
                "with `training calibrate`"
            )
        held_data, held = labelled_rows(model, options, labelled=data.labelled)
        held_out = HeldOut(
            model.logits(held_data, held).astype(np.float64), held.labels, log_source
        )
        calibration = held_out.measured(
            class_frequencies=counts, class_names=model.bundle.class_names
        )
    found = estimate(model.logits(data, unlabelled), calibration, class_frequencies=counts)
    return {
        "bundle": str(options.model),
        "data": options.data,
        "class_names": model.bundle.class_names,
        **found,
    }
