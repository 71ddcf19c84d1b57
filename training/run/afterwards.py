"""Changes the last layer after training (Kang et al., ICLR 2020)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from service.contract.adjustment import MAX_TAU, log_source_prior
from training.faults import WrongUse
from training.learning.samplers import Recorded
from training.loop.last_layer import features_of, last_layer, with_last_layer
from training.run.prepare import Prepared
from training.run.recipe import Recipe
from training.run.retrain import learn_scales, retrain_classifier
from training.scores.calibrate import fit_divided_share
from training.scores.posthoc import Curve, best_tau, norm_curve


@dataclass(frozen=True)
class Changed:
    """The network with its new last layer, and the facts to record in model.json."""

    network: nn.Module
    recorded: Recorded
    norm_tau: float | None = None
    """The tau of weight normalisation; None for other changes."""
    curve: Curve = ()
    """(tau, balanced error) on validation, if tau was chosen there."""


def check_afterwards(recipe: Recipe, ready: Prepared, network: nn.Module) -> None:
    """Raise WrongUse unless recipe.afterwards fits the method and the untrained network."""
    kind, tau = recipe.afterwards, recipe.norm_tau
    if tau is not None and kind != "weight-norm":
        raise WrongUse("--norm-tau is only for --afterwards weight-norm; leave it out")
    if kind == "nothing":
        return
    if tau is not None and not 0 <= tau <= MAX_TAU:  # NaN compares false
        raise WrongUse(f"--norm-tau is {tau}; expected 0 … {MAX_TAU:g}")
    if ready.objective.head != "linear":
        raise WrongUse(
            f"--afterwards {kind}: loss '{recipe.loss}' trains a {ready.objective.head} head "
            "instead of a linear layer whose weights could be changed; use another loss"
        )
    if kind == "weight-norm" and ready.recorded.loss_tau != 0:
        raise WrongUse(
            f"--afterwards weight-norm: loss '{recipe.loss}' with sampler '{recipe.sampler}' has "
            "divided out the label frequencies already, and normalising would do it twice; "
            "use loss 'erm' and sampler 'uniform'"
        )
    if kind == "weight-norm" and tau is None and ready.data.val is None:
        raise WrongUse(
            "--afterwards weight-norm: no validation rows to choose tau on; give --norm-tau"
        )
    few = ready.data.train.take(np.arange(min(2, len(ready.data.train))))
    try:
        features_of(network, ready.data, few, device=torch.device("cpu"))
    except WrongUse as error:
        raise WrongUse(f"--afterwards {kind}: {error}") from None


def change_last_layer(
    recipe: Recipe, ready: Prepared, network: nn.Module, *, device: torch.device
) -> Changed:
    """Return the trained network with its last layer changed as recipe.afterwards says.

    The change replaces weights and bias, and adds nothing to the graph. cRT and LWS train with
    class-balanced sampling, which is recorded as loss_tau 1. Weight normalisation divides out a
    share of the label frequencies that is measured on validation (1 without a validation split).
    """
    if recipe.afterwards == "nothing":
        return Changed(network, ready.recorded)
    if recipe.afterwards == "weight-norm":
        return _normalised(recipe, ready, network, device)
    data = ready.data
    features = features_of(network, data, data.train, device=device)
    labels, classes = data.train.labels, data.num_classes
    if recipe.afterwards == "crt":
        fresh = retrain_classifier(features, labels, classes, seed=recipe.seed)
        return Changed(with_last_layer(network, fresh), Recorded(1.0, "exact"))
    scaled = learn_scales(last_layer(network), features, labels, seed=recipe.seed)
    return Changed(with_last_layer(network, scaled), Recorded(1.0, "approximate"))


def _normalised(
    recipe: Recipe, ready: Prepared, network: nn.Module, device: torch.device
) -> Changed:
    layer, val, tau = last_layer(network), ready.data.val, recipe.norm_tau
    curve: Curve = ()
    share = 1.0
    if val is not None:
        features = features_of(network, ready.data, val, device=device)
        if tau is None:
            curve = norm_curve(layer, features, val.labels)
            tau = best_tau(curve)
        share = fit_divided_share(
            layer.normalised(tau).logits(features),
            val.labels,
            log_label_frequencies=log_source_prior(ready.data.class_counts, loss_tau=0.0),
        )
    assert tau is not None  # check_afterwards wants a validation split or a tau
    changed = with_last_layer(network, layer.normalised(tau))
    return Changed(changed, Recorded(share, "approximate"), tau, curve)
