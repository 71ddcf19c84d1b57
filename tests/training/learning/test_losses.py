"""Every named loss is the pairwise margin loss, stable, and records what it divides out."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from service.contract.adjustment import adjust_logits, log_softmax
from tests.support.margins import pairwise_margin
from training.learning.losses import (
    COSINE_SCALE,
    LOSSES,
    InvalidObjective,
    class_balanced_weights,
    make_loss,
)
from training.learning.margins import equalised_random, focal, logit_adjusted
from training.learning.networks import CosineLinear

COUNTS = np.array([5000, 700, 90, 12, 3])
PI = COUNTS / COUNTS.sum()
LOG_PI = np.log(PI)
LDAM_MARGIN = COSINE_SCALE * 0.5 * (3 / COUNTS) ** 0.25


def columns(row):
    return np.tile(row, (len(row), 1))


def mean_one(alpha):
    return alpha / (PI @ alpha)


# name -> (alpha [C], Delta [C, C] with the label in rows), as the paper's table has them
FORMS = {
    ("erm", 1.0): (np.ones(5), np.zeros((5, 5))),
    ("balanced", 1.0): (mean_one(1 / PI), np.zeros((5, 5))),
    ("logit-adjusted", 1.0): (np.ones(5), columns(LOG_PI) - LOG_PI[:, None]),
    ("logit-adjusted", 0.4): (np.ones(5), 0.4 * (columns(LOG_PI) - LOG_PI[:, None])),
    ("balanced-softmax", 1.0): (np.ones(5), columns(LOG_PI) - LOG_PI[:, None]),
    ("weighted-logit-adjusted", 0.7): (
        mean_one(PI ** (0.7 - 1)),
        0.7 * (columns(LOG_PI) - LOG_PI[:, None]),
    ),
    ("adaptive", 1.0): (np.ones(5), np.tile(PI[:, None] ** -0.25, (1, 5))),
    ("ldam", 1.0): (np.ones(5), np.tile(LDAM_MARGIN[:, None], (1, 5))),
    ("equalised", 1.0): (np.ones(5), columns(LOG_PI)),
    ("logit-adjusted+adaptive", 1.0): (
        np.ones(5),
        columns(LOG_PI) - LOG_PI[:, None] + PI[:, None] ** -0.25,
    ),
}


def batch(num_classes=5, rows=64, scale=5.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(rows, num_classes, generator=generator)
    labels = torch.randint(num_classes, (rows,), generator=generator)
    return logits.to(dtype), labels


def general(logits, labels, alpha, delta):
    """The formula of the paper, written out naively in float64."""
    f = logits.double().numpy()
    losses = []
    for row, y in zip(f, labels.tolist(), strict=True):
        rivals = [math.exp(delta[y, k] + row[k] - row[y]) for k in range(len(row)) if k != y]
        losses.append(alpha[y] * math.log1p(sum(rivals)))
    return np.array(losses)


@pytest.mark.parametrize(("name", "loss_tau"), FORMS)
def test_a_named_loss_equals_the_pairwise_margin_loss_of_the_table(name, loss_tau):
    logits, labels = batch()
    alpha, delta = FORMS[name, loss_tau]
    objective = make_loss(name, COUNTS, loss_tau=loss_tau)
    expected = general(logits, labels, alpha, delta)
    rounding = 2e-6 * alpha.max()  # a cross-entropy near 0 is the difference of two logits near 20
    losses = objective.example_loss(logits, labels).numpy()
    assert losses == pytest.approx(expected, rel=2e-5, abs=rounding)
    dense = pairwise_margin(
        logits,
        labels,
        delta=torch.from_numpy(delta).float(),
        alpha=torch.from_numpy(alpha).float(),
    )
    assert dense.numpy() == pytest.approx(expected, rel=2e-5)
    assert objective(logits, labels).item() == pytest.approx(expected.mean(), rel=2e-5)


@pytest.mark.parametrize(("name", "loss_tau"), FORMS)
def test_the_gradient_of_a_named_loss_is_the_general_forms(name, loss_tau):
    alpha, delta = FORMS[name, loss_tau]
    logits, labels = batch()
    special, dense = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    make_loss(name, COUNTS, loss_tau=loss_tau)(special, labels).backward()
    pairwise_margin(
        dense,
        labels,
        delta=torch.from_numpy(delta).float(),
        alpha=torch.from_numpy(alpha).float(),
    ).mean().backward()
    assert torch.allclose(special.grad, dense.grad, atol=1e-6)


def test_the_logit_adjusted_loss_is_the_contracts_formula_with_source_and_target_exchanged():
    logits, labels = batch(dtype=torch.float64)
    uniform = np.full(5, -math.log(5))
    z = adjust_logits(logits.numpy(), log_source_prior=uniform, log_target_prior=LOG_PI, tau=0.6)
    expected = -log_softmax(z)[np.arange(len(z)), labels.numpy()]
    loss = logit_adjusted(logits, labels, log_frequencies=torch.from_numpy(LOG_PI), loss_tau=0.6)
    assert loss.numpy() == pytest.approx(expected, rel=1e-12)


def test_counts_and_frequencies_give_the_same_loss():
    logits, labels = batch()
    for name in LOSSES:
        torch.manual_seed(1)
        by_counts = make_loss(name, COUNTS)(logits, labels)
        torch.manual_seed(1)
        by_frequencies = make_loss(name, PI)(logits, labels)
        assert by_counts.item() == pytest.approx(by_frequencies.item(), rel=1e-5)


@pytest.mark.parametrize("name", ["logit-adjusted", "weighted-logit-adjusted"])
def test_at_the_limits_of_loss_tau_the_families_meet(name):
    logits, labels = batch()
    at_zero = make_loss(name, COUNTS, loss_tau=0.0)(logits, labels)
    plain = make_loss("erm" if name == "logit-adjusted" else "balanced", COUNTS)
    assert at_zero.item() == pytest.approx(plain(logits, labels).item(), rel=1e-5)
    at_one = make_loss(name, COUNTS, loss_tau=1.0)(logits, labels)
    assert at_one.item() == pytest.approx(
        make_loss("balanced-softmax", COUNTS)(logits, labels).item(), rel=1e-5
    )


def test_weights_have_mean_one_over_the_training_examples():
    labels = torch.from_numpy(np.repeat(np.arange(5), COUNTS))
    logits = torch.zeros(len(labels), 5)
    weighted = make_loss("balanced", COUNTS)(logits, labels)
    assert weighted.item() == pytest.approx(math.log(5), rel=1e-4)


def test_focal_without_focus_is_cross_entropy_and_with_it_never_more():
    logits, labels = batch()
    plain = F.cross_entropy(logits, labels, reduction="none")
    assert torch.equal(focal(logits, labels, gamma=0.0), plain)
    assert (focal(logits, labels, gamma=2.0) <= plain).all()
    p = torch.softmax(logits.double(), 1).gather(1, labels[:, None])[:, 0]
    assert torch.allclose(focal(logits, labels).double(), (1 - p) ** 2 * -p.log(), rtol=1e-4)


def test_equalised_random_ignores_rare_rivals_with_probability_gamma_and_never_the_label():
    logits, labels = batch(rows=20000, scale=0.0)
    rare = torch.tensor([False, False, False, True, True])
    everything = equalised_random(logits, labels, rare=rare, gamma=1.0)
    kept = torch.where(rare[labels], 4.0, 3.0)  # of a rare label, only the label itself stays
    assert torch.allclose(everything, kept.log())
    nothing = equalised_random(logits, labels, rare=rare, gamma=0.0)
    assert torch.allclose(nothing, torch.tensor(math.log(5)))
    half = equalised_random(logits, labels, rare=rare, gamma=0.5)
    common = half[~rare[labels]]
    expected = 0.25 * math.log(3) + 0.5 * math.log(4) + 0.25 * math.log(5)
    assert common.mean().item() == pytest.approx(expected, abs=0.005)


def test_deferred_reweighting_begins_at_its_share_of_the_run():
    logits, labels = batch()
    objective = make_loss("ldam", COUNTS)
    assert objective.at(0.79) is objective
    late = objective.at(0.8)
    weights = torch.from_numpy(class_balanced_weights(COUNTS.astype(float))).float()
    expected = weights[labels] * objective.example_loss(logits, labels)
    assert torch.allclose(late.example_loss(logits, labels), expected)
    assert (late.name, late.recorded_loss_tau, late.head) == ("ldam", 0.0, "cosine")
    assert late.at(1.0) is late
    plain = make_loss("ldam", COUNTS, drw=False)
    assert plain.at(1.0) is plain


def test_class_balanced_weights_agree_with_the_published_ones():
    """CIFAR-10-LT, ratio 100, beta 0.9999: 0.0506 for the largest class, 3.993 for the smallest."""
    counts = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], float)
    weights = class_balanced_weights(counts)
    assert weights.sum() == pytest.approx(10)
    assert weights[[0, -1]] == pytest.approx([0.0506, 3.993], abs=6e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_finite_for_frequencies_of_1e_12_in_bf16_and_at_large_logits(name):
    frequencies = np.array([1.0, 1e-3, 1e-6, 1e-12])
    for dtype, scale in ((torch.bfloat16, 1.0), (torch.bfloat16, 300.0), (torch.float16, 1e4)):
        logits, labels = batch(4, scale=scale, dtype=dtype)
        logits.requires_grad_()
        loss = make_loss(name, frequencies).at(1.0)(logits, labels)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        if (
            dtype == torch.bfloat16
        ):  # float16 ends at 65,504, below the weight 1 / 1e-12 of `balanced`
            assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_in_bf16_is_that_of_the_rounded_logits(name):
    logits, labels = batch(dtype=torch.bfloat16)
    torch.manual_seed(2)
    low = make_loss(name, COUNTS)(logits, labels)
    torch.manual_seed(2)
    assert low == make_loss(name, COUNTS)(logits.float(), labels)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_runs_at_8142_classes(name):
    counts = np.maximum(1000 * np.exp(-np.arange(8142) / 900), 2).round()
    logits, labels = batch(8142, rows=8)
    assert torch.isfinite(make_loss(name, counts)(logits, labels))


def test_a_sparse_margin_matrix_gives_the_dense_ones_loss():
    logits, labels = batch()
    dense = torch.zeros(5, 5)
    dense[0, 4], dense[3, 1] = 2.0, -1.5
    sparse = dense.to_sparse_coo().coalesce()
    assert torch.equal(
        pairwise_margin(logits, labels, delta=sparse),
        pairwise_margin(logits, labels, delta=dense),
    )


def test_a_sparse_margin_matrix_of_8142_classes_needs_no_dense_one():
    size = 8142
    index = torch.tensor([[0, 5, 8141], [1, 8000, 0]])
    delta = torch.sparse_coo_tensor(
        index, torch.ones(3), (size, size), check_invariants=True
    ).coalesce()
    logits = torch.zeros(2, size)
    loss = pairwise_margin(logits, torch.tensor([5, 7]), delta=delta)
    assert loss.tolist() == pytest.approx([math.log(size - 1 + math.e), math.log(size)], rel=1e-6)


def test_the_general_form_keeps_losses_far_below_the_rounding_of_one():
    logits = torch.tensor([[30.0, 0.0]])
    loss = pairwise_margin(logits, torch.tensor([0]), delta=torch.zeros(2, 2))
    assert loss.item() == pytest.approx(math.exp(-30), rel=1e-5)


def test_what_a_loss_divides_out_is_recorded_as_the_table_has_it():
    table = {
        "erm": (0, "exact"),
        "balanced": (1, "exact"),
        "logit-adjusted": (0.5, "exact"),
        "weighted-logit-adjusted": (1, "exact"),
        "balanced-softmax": (1, "exact"),
        "adaptive": (0, "approximate"),
        "ldam": (0, "approximate"),
        "equalised": (0, "approximate"),
        "equalised-random": (0, "approximate"),
        "focal": (0, "approximate"),
        "logit-adjusted+adaptive": (1, "approximate"),
    }
    assert set(table) == set(LOSSES)
    for name, expected in table.items():
        takes_tau = name in ("logit-adjusted", "weighted-logit-adjusted")
        objective = make_loss(name, COUNTS, loss_tau=0.5 if takes_tau else 1.0)
        assert (objective.recorded_loss_tau, objective.source_prior) == expected
        assert objective.head == ("cosine" if name == "ldam" else "linear")


def test_an_objective_can_be_moved_to_a_device_before_the_run():
    objective = make_loss("ldam", COUNTS).to("meta")
    assert objective.example_loss.label_margin.device.type == "meta"
    assert objective.at(1.0).example_loss.alpha.device.type == "meta"
    assert make_loss("erm", COUNTS).to("cpu")(*batch()) == make_loss("erm", COUNTS)(*batch())


def test_an_objective_follows_the_logits_to_their_device():
    logits, labels = (each.to("meta") for each in batch())
    for name in LOSSES:
        assert make_loss(name, COUNTS).to(logits.device)(logits, labels).is_meta


@pytest.mark.parametrize("name", LOSSES)
def test_an_objective_is_widened_as_every_module_is(name):
    logits, labels = batch()
    torch.manual_seed(1)
    narrow = make_loss(name, COUNTS)(logits, labels)
    torch.manual_seed(1)
    wide = make_loss(name, COUNTS).double()(logits.double(), labels)
    assert wide.dtype == torch.float64
    assert wide.item() == pytest.approx(narrow.item(), rel=0.2 if "random" in name else 1e-5)


@pytest.mark.parametrize(
    ("name", "counts", "options", "message"),
    [
        ("cross-entropy", COUNTS, {}, "no loss 'cross-entropy'; expected one of erm"),
        ("erm", [10, 0], {}, "every class needs a finite count greater than 0"),
        ("erm", [10, math.nan], {}, "every class needs"),
        ("erm", [[10, 2]], {}, "every class needs"),
        ("erm", COUNTS, {"loss_tau": 0.5}, "'erm' has no loss_tau"),
        ("logit-adjusted", COUNTS, {"loss_tau": -1.0}, "expected 0 … 10"),
        ("logit-adjusted", COUNTS, {"loss_tau": math.nan}, "expected 0 … 10"),
        (
            "focal",
            COUNTS,
            {"sharpness": 2},
            "'focal' has no option 'sharpness'; its options: gamma",
        ),
        ("erm", COUNTS, {"gamma": 2}, "'erm' has no option 'gamma'; its options: none"),
        ("focal", COUNTS, {"gamma": -3}, "option gamma=-3: expected a number in 0 … 100"),
        ("ldam", COUNTS, {"beta": 1}, "option beta=1: expected a number in 1e-12 … below 1"),
        ("ldam", COUNTS, {"drw": 0.5}, "option drw=0.5: expected 0 or 1"),
        ("ldam", COUNTS, {"max_margin": math.nan}, "option max_margin=nan: expected a number"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(name, counts, options, message):
    with pytest.raises(InvalidObjective, match=message):
        make_loss(name, np.array(counts), **options)


def test_the_class_vectors_of_a_cosine_head_start_at_length_one():
    """Longer ones would turn slower, by the square of their length, at the same learning rate."""
    weight = CosineLinear(432, 10).weight
    assert torch.linalg.vector_norm(weight, dim=1).tolist() == pytest.approx([1.0] * 10, abs=1e-5)
