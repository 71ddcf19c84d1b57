"""Computes the data of a comparison's figures for one seed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import spearmanr

from service.contract.adjustment import Vector, adjust_logits, log_target_prior, softmax
from service.contract.scores import class_totals, error, reliability, target_weights
from service.contract.shift.label_shift import NotConverged, em_prior
from training.data.long_tail import shifted_rows
from training.scores.calibrate import TAU_GRID, fit_temperature, log_validation_prior_of
from training.scores.posthoc import NORM_GRID, adjustment_curve, best_tau, norm_curve
from training.scores.source import Measured, calibrate
from training.studies.outcomes import Outcome, SplitOutputs

SHIFTS = (2, 5, 10, 25, 50)
ADJUSTMENTS = ("none", "balanced", "true target", "estimated target")


def curves_of(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return one seed's data for the figures, as far as the runs are available."""
    found: dict[str, Any] = {"norms": norms(outcomes), "reliability": {}}
    erm = outcomes.get("erm")
    for name, run in (("erm", "erm"), ("adam", "erm-adam")):
        if run in outcomes:
            found[f"tau_{name}"] = tau_curves(outcomes[run])
    if erm is not None and erm.val is not None:
        found["reliability"] = reliabilities(outcomes)
        if _every_class(erm.test, erm) and _every_class(erm.val, erm):
            found["shifted"] = shifted_errors(erm)
    return found


def _every_class(part: SplitOutputs, outcome: Outcome) -> bool:
    return len(np.unique(part.labels)) == len(outcome.class_counts)


def tau_curves(outcome: Outcome) -> dict[str, Any]:
    """Return [[tau, balanced error]] of both sweeps on test and validation, and the oracle.

    The oracle is the best tau *on test*.
    """
    found: dict[str, Any] = {}
    for split, part in (("test", outcome.test), ("val", outcome.val)):
        if part is None:
            continue
        found[f"post-hoc {split}"] = adjustment_curve(
            part.logits, part.labels, log_source_prior=outcome.log_source_prior, grid=TAU_GRID
        )
        if outcome.layer is not None and part.features is not None:
            found[f"weight-norm {split}"] = norm_curve(
                outcome.layer, part.features, part.labels, grid=NORM_GRID
            )
    oracle = {
        name: [best_tau(found[f"{name} test"]), min(e for _, e in found[f"{name} test"])]
        for name in ("post-hoc", "weight-norm")
        if f"{name} test" in found
    }
    return {key: [list(point) for point in curve] for key, curve in found.items()} | {
        "oracle": oracle
    }


def norms(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return the last layer's norms by optimiser, their rank correlation and norm_slope."""
    found = {}
    for name, run in (("SGD", "erm"), ("Adam", "erm-adam")):
        outcome = outcomes.get(run)
        if outcome is not None and outcome.layer is not None:
            lengths = outcome.layer.norms
            alike = np.ptp(lengths) == 0 or np.ptp(outcome.class_counts) == 0
            correlation = (
                np.nan if alike else float(spearmanr(lengths, outcome.class_counts).statistic)
            )
            found[name] = {
                "norms": lengths.tolist(),
                "spearman": None if np.isnan(correlation) else correlation,
                "slope": norm_slope(lengths, outcome.class_counts),
            }
    return found


def norm_slope(norms: ArrayLike, class_counts: ArrayLike) -> float | None:
    """Fit the exponent b of norms ~ class_counts ** b, by least squares of the logarithms.

    Both are [C]. The result is 0 if norms do not depend on the counts, and None if all counts are
    equal. Unlike a rank correlation it shows how strong the dependence is: weight normalisation
    with tau divides out a factor of counts ** (b tau).
    """
    x: Vector = np.log(np.asarray(class_counts, np.float64))
    x = x - x.mean()
    if not x.any():
        return None
    return float(x @ np.log(np.asarray(norms, np.float64)) / (x @ x))


def reliabilities(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Return the data of reliability diagrams on the test split at a uniform target.

    The diagrams are of each run as trained and after adjustment, with and without temperature.
    """
    found = {}
    for run in ("erm", "logit-adjusted"):
        outcome = outcomes.get(run)
        if outcome is None or outcome.val is None:
            continue
        temperature = _temperature(outcome, outcome.val)
        variants = [(run, 0.0, 1.0), (f"{run}, calibrated", 1.0, temperature)]
        if run == "erm":
            variants.insert(1, ("post-hoc τ=1", 1.0, 1.0))
            variants[2] = ("post-hoc τ=1, calibrated", 1.0, temperature)
        for name, tau, divisor in variants:
            found[name] = _reliability(outcome, tau=tau, temperature=divisor)
    return found


def _reliability(outcome: Outcome, *, tau: float, temperature: float) -> dict[str, Any]:
    p = _probabilities(
        outcome, outcome.test.logits, np.zeros(len(outcome.class_counts)), tau, temperature
    )
    labels = outcome.test.labels
    diagram = reliability(p, labels, target_weights(labels, np.ones(p.shape[1])))
    return {
        "ece": diagram.ece,
        "share": diagram.share.tolist(),
        "confidence": _listed(diagram.confidence),
        "accuracy": _listed(diagram.accuracy),
    }


def shifted_errors(erm: Outcome) -> dict[str, Any]:
    """Return the error on LADE's shifted test sets under each of ADJUSTMENTS, and EM's estimates.

    The result is {"forward-50": {"n", "none", …, "estimate_distance"}, …, "uniform": {…}}. The
    distance is the total variation from the true mix. For a refused estimate, it and the error of
    EM are None.
    """
    assert erm.val is not None
    temperature = _temperature(erm, erm.val)
    measured = calibrate(
        np.asarray(erm.val.logits, np.float64),
        erm.val.labels,
        log_source_prior=erm.log_source_prior,
    )
    found = {}
    for direction in ("backward", "forward"):
        for ratio in SHIFTS:
            rows = shifted_rows(
                erm.test.labels,
                direction=direction,
                ratio=ratio,
                class_counts=erm.class_counts,
            )
            found[f"{direction}-{ratio}"] = _shifted(erm, measured, rows, temperature)
    every = np.arange(len(erm.test.labels))
    return found | {"uniform": _shifted(erm, measured, every, temperature)}


def _shifted(erm: Outcome, measured: Measured, rows: Any, temperature: float) -> dict[str, Any]:
    labels, logits = erm.test.labels[rows], erm.test.logits[rows]
    classes = len(erm.class_counts)
    true = class_totals(labels, classes) / len(labels)
    try:
        estimated = em_prior(
            measured.posteriors(logits), source_prior=np.exp(measured.log_source_prior)
        )
    except NotConverged:
        estimated = None
    targets: dict[str, tuple[float, Vector | None]] = {
        "none": (0.0, np.ones(classes)),
        "balanced": (1.0, np.ones(classes)),
        "true target": (1.0, true),
        "estimated target": (1.0, estimated),
    }
    errors = {
        name: None
        if target is None
        else error(
            _probabilities(erm, logits, log_target_prior(target), tau, temperature).argmax(axis=1),
            labels,
        )
        for name, (tau, target) in targets.items()
    }
    distance = None if estimated is None else float(np.abs(estimated - true).sum() / 2)
    return {"n": len(labels), **errors, "estimate_distance": distance}


def _probabilities(
    outcome: Outcome, logits: Any, log_target: Vector, tau: float, temperature: float
) -> Vector:
    return softmax(
        adjust_logits(
            logits,
            log_source_prior=outcome.log_source_prior,
            log_target_prior=log_target,
            tau=tau,
            temperature=temperature,
        )
    )


def _temperature(outcome: Outcome, val: SplitOutputs) -> float:
    return fit_temperature(
        val.logits,
        val.labels,
        log_source_prior=outcome.log_source_prior,
        log_validation_prior=log_validation_prior_of(val.labels, len(outcome.class_counts)),
    )


def _listed(values: Vector) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
