"""Every recipe of the package loads, and those of the paper say what the paper's table says."""

from dataclasses import fields

import numpy as np
import pytest

from training.data.order import steps_of
from training.faults import WrongUse
from training.learning.resnet import released_resnet32, resnet32
from training.run.candidates import candidates
from training.run.recipe import CHOICES, Recipe
from training.run.recipe_file import make, names

ROWS = {"cifar10-lt": 12_406, "cifar100-lt": 10_847, "imagenet-lt": 115_846, "inaturalist": 437_513}
CIFAR_EPOCH = (
    390.625  # steps of 128 over the 50,000 images of full CIFAR, by which the released code counts
)


def plan(name, rows=1000):
    recipe = make(name, {"data": "digits"} if name in PAPERS else {})
    return recipe, recipe.plan(rows)


PAPERS = ("cifar10-lt", "cifar100-lt", "cifar10-lt-released", "cifar100-lt-released", "imagenet-lt",
          "inaturalist")  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_a_recipe_loads_and_its_points_lie_within_the_run_in_order(name):
    recipe, planned = plan(name)
    assert recipe.description.endswith(".")
    points = [planned.warmup, *planned.milestones, planned.steps]
    assert points == sorted(points)
    assert planned.rate(planned.warmup) == pytest.approx(recipe.resolved().lr)
    assert planned.rate(planned.steps - 1) < recipe.resolved().lr


@pytest.mark.parametrize("name", ["cifar10-lt", "cifar100-lt"])
def test_cifar_is_trained_as_the_paper_has_it(name):
    recipe, planned = plan(name)
    rows = ROWS[name]
    assert planned.steps == steps_of(epochs=200, rows=rows, batch_rows=128)
    assert planned.warmup == steps_of(epochs=5, rows=rows, batch_rows=128)
    for milestone, epoch in zip(planned.milestones, (160, 180), strict=True):
        assert abs(milestone - epoch * rows / 128) <= 1
    assert [planned.rate(m) for m in planned.milestones] == pytest.approx([0.01, 0.001])
    assert (recipe.network, recipe.momentum, recipe.nesterov) == ("resnet32", 0.9, False)
    assert (recipe.weight_decay, recipe.decay_norms, recipe.batch) == (1e-4, True, 128)
    assert (recipe.augment, recipe.pad) == ("crop-flip", 4)


@pytest.mark.parametrize("name", ["cifar10-lt-released", "cifar100-lt-released"])
def test_cifar_is_trained_as_the_released_code_does(name):
    recipe, planned = plan(name)
    assert planned.steps == pytest.approx(119_000, rel=0.005)
    for milestone, epoch in zip(planned.milestones, (150, 230, 280), strict=True):
        assert milestone / planned.steps == pytest.approx(epoch / 308, rel=1e-3)
    assert planned.warmup == pytest.approx(5 * CIFAR_EPOCH, rel=0.06)
    assert (recipe.network, recipe.nesterov) == ("released-resnet32", True)
    assert (recipe.weight_decay, recipe.decay_norms, recipe.pad) == (2e-4, False, 2)


@pytest.mark.parametrize(("name", "decay"), [("imagenet-lt", 5e-4), ("inaturalist", 1e-4)])
def test_resnet_50_is_trained_as_the_paper_has_it(name, decay):
    recipe, planned = plan(name)
    rows = ROWS[name]
    assert abs(planned.steps - 90 * rows / 512) <= 1
    assert abs(planned.warmup - 5 * rows / 512) <= 1
    assert (recipe.lr, recipe.batch, recipe.schedule, recipe.momentum) == (0.4, 512, "cosine", 0.9)
    assert (recipe.weight_decay, recipe.nesterov) == (decay, False)
    assert (recipe.image_size, recipe.augment) == (224, "resized-crop-flip")
    assert recipe.network == "torchvision.models:resnet50"


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_resnet_32_has_the_size_that_its_paper_gives():
    assert parameters(resnet32(10)) == pytest.approx(0.46e6, rel=0.02)
    assert parameters(released_resnet32(10)) != parameters(resnet32(10))


@pytest.mark.parametrize("field", sorted(CHOICES))
def test_a_field_that_is_a_choice_is_checked_wherever_it_comes_from(field, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(f'data = "digits"\n{field} = "bf32"\n', encoding="utf-8")
    with pytest.raises(WrongUse, match=f"--{field.replace('_', '-')} is 'bf32'; expected one of"):
        make(str(path), {})


def test_every_field_of_text_is_a_choice_or_known_to_be_free():
    free = {"data", "name", "recipe", "description", "resize", "network", "init", "tokens"}
    texts = {f.name for f in fields(Recipe) if f.type in ("str", "str | None", str, str | None)}
    assert texts - free - set(CHOICES) == set()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": float("nan")}, "--lr is nan; expected more than 0"),
        ({"lr": float("inf")}, "--lr is inf; expected more than 0"),
        ({"lr": 1e300}, r"--lr is 1e\+300; expected at most 1e\+30"),
        ({"weight_decay": 1e9}, r"--weight-decay is 1000000000.0; expected at most 1,000,000"),
        ({"seed": 10**23}, "expected a number below 2"),
        ({"momentum": 1.0}, "below 1"),
        ({"image_std": (0.0, 0.5, 0.5)}, "--image-std is .* expected more than 0"),
        ({"imbalance_ratio": 10.0}, "has no effect without a profile"),
    ],
)
def test_a_number_without_a_meaning_is_refused_by_its_flag(settings, said):
    with pytest.raises(WrongUse, match=said):
        make(None, {"data": "digits"} | settings)


def test_auto_reads_texts_without_a_space_by_their_characters(tmp_path):
    texts = np.array(["今天天气好", "他去了北京", "猫在睡觉", "我们吃饭"] * 5)
    labels = np.arange(20) % 2
    path = tmp_path / "own.npz"
    np.savez(path, x_train=texts, y_train=labels, x_test=texts, y_test=labels)
    (only,) = candidates(make(None, {"data": f"npz:{path}"}))
    assert (only.network, only.tokens) == ("tfidf", "characters")
