"""Weight normalisation, tau sweeps, and the last layer read, replaced and trained again."""

import numpy as np
import pytest
import torch
from torch import nn

from training.faults import WrongUse
from training.loop.last_layer import head_of, last_layer, with_last_layer
from training.run.retrain import learn_scales, retrain_classifier
from training.scores.posthoc import LastLayer, adjustment_curve, best_tau, norm_curve

LAYER = LastLayer(np.array([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]]), np.array([1.0, 2.0, 3.0]))


def longtailed_features(seed=0):
    """Three Gaussian classes with 900, 90 and 15 examples, in 5 features."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), [900, 90, 15])
    return (rng.normal(size=(1005, 5)) + 2 * np.eye(3, 5)[labels]).astype(np.float32), labels


def recalls(layer, features, labels):
    right = layer.logits(features).argmax(1) == labels
    return np.array([right[labels == label].mean() for label in range(3)])


def test_at_tau_0_normalisation_only_drops_the_bias_and_at_1_all_norms_are_one():
    assert LAYER.normalised(0.0).weight.tolist() == LAYER.weight.tolist()
    assert not LAYER.normalised(0.0).bias.any()
    assert LAYER.normalised(1.0).norms == pytest.approx([1, 1, 0])


def test_the_sweep_of_weight_normalisation_is_that_of_the_folded_layers():
    features, labels = longtailed_features()
    layer = LastLayer(np.random.default_rng(1).normal(size=(3, 5)), np.zeros(3))
    for tau, error in norm_curve(layer, features, labels, grid=(0.0, 0.5, 2.0)):
        assert error == pytest.approx(1 - recalls(layer.normalised(tau), features, labels).mean())


def test_positive_divisors_change_no_sign_of_a_logit():
    features, _ = longtailed_features()
    layer = LastLayer(np.random.default_rng(1).normal(size=(3, 5)), np.zeros(3))
    before, after = layer.logits(features), layer.normalised(1.7).logits(features)
    assert (np.sign(before) == np.sign(after)).all()


def test_post_hoc_adjustment_at_tau_0_is_the_plain_error_and_falls_towards_1():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 500)
    log_prior = np.log([0.9, 0.08, 0.02])
    logits = 1.5 * (rng.normal(size=(1500, 3)) + 1.5 * np.eye(3)[labels]) + log_prior
    curve = dict(adjustment_curve(logits, labels, log_source_prior=log_prior, grid=(0.0, 0.5, 1.0)))
    assert curve[0.0] == pytest.approx((logits.argmax(1) != labels).mean())
    assert curve[1.0] < curve[0.5] < curve[0.0]


def test_of_equal_errors_the_tau_nearest_one_is_taken():
    assert best_tau(((0.0, 0.2), (0.8, 0.1), (1.5, 0.1), (2.0, 0.3))) == 0.8


def test_crt_trains_a_classifier_that_serves_the_rare_class():
    features, labels = longtailed_features()
    plain = LastLayer(np.eye(3, 5) * 2, np.log([0.9, 0.09, 0.015]))
    again = retrain_classifier(features, labels, 3, seed=0)
    assert recalls(again, features, labels)[2] > recalls(plain, features, labels)[2]
    assert recalls(again, features, labels).mean() > recalls(plain, features, labels).mean()


def test_crt_is_determined_by_its_seed():
    features, labels = longtailed_features()
    first, second, other = (retrain_classifier(features, labels, 3, seed=s) for s in (0, 0, 1))
    assert np.array_equal(first.weight, second.weight)
    assert not np.array_equal(first.weight, other.weight)


def test_lws_changes_each_class_by_a_scale_only():
    features, labels = longtailed_features()
    layer = LastLayer(np.eye(3, 5) + 0.1, np.array([0.5, -0.5, -1.0]))
    scaled = learn_scales(layer, features, labels, seed=0)
    factors = scaled.bias / layer.bias
    assert scaled.weight == pytest.approx(layer.weight * factors[:, None])
    assert not np.allclose(factors, 1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def test_a_replaced_layer_gives_its_own_logits_and_leaves_the_network_alone():
    net = network().eval()
    x = torch.randn(10, 4)
    before = net(x)
    layer = last_layer(net)
    changed = with_last_layer(net, layer.normalised(1.0))
    hidden = net[:2](x).detach().numpy()
    assert changed(x).detach().numpy() == pytest.approx(
        layer.normalised(1.0).logits(hidden), abs=1e-5
    )
    assert torch.equal(net(x), before)
    assert [type(m) for m in changed] == [type(m) for m in net]


def test_the_last_linear_layer_is_found_and_its_absence_told():
    assert head_of(network())[0] == "2"
    with pytest.raises(WrongUse, match="does not end in a linear layer"):
        head_of(nn.Sequential(nn.ReLU()))
