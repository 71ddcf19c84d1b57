"""The mix of each context: its own when it has many rows, near the overall mix when few."""

import numpy as np
import pytest

from service.contract.adjustment import softmax
from service.evaluate.answers import Answered, rows_of
from service.evaluate.contexts import pooled
from service.evaluate.live import Mix
from service.priors.revisions import ChosenBy
from tests.service.evaluate.test_answers import Used

CENTRES = 3.0 * np.eye(3)
SOURCE = np.array([0.6, 0.3, 0.1])


def traffic(site, mix, rows, seed):
    """Answers of a calibrated model to rows of a class mix, in a context."""
    rng = np.random.default_rng(seed)
    x = CENTRES[rng.choice(3, rows, p=mix)] + rng.normal(size=(rows, 3))
    chance = softmax(-0.5 * ((x[:, None] - CENTRES) ** 2).sum(axis=2) + np.log(SOURCE))
    top = np.argsort(-chance, axis=1)
    chosen = ChosenBy("by-site", 1, "site", site, None)
    return Answered(
        request_id=f"{site}-{seed}",
        top=top,
        probability=np.take_along_axis(chance, top, axis=1).astype(np.float32),
        decision=None,
        start=0,
        stop=rows,
        tau=0.0,
        priors=(Used(None, chosen),),
        prior_of_row=None,
    )


def test_a_context_with_many_rows_has_its_own_mix_and_one_with_few_that_of_the_whole():
    north, south = [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]
    rows = rows_of(
        [
            traffic("north", north, 3000, 0),
            traffic("south", south, 3000, 1),
            traffic("west", north, 2, 2),
            traffic("elsewhere", north, 500, 3),
        ],
        1.0,
    )
    cases = [("site", site) for site in ("north", "south", "west", "nowhere")]
    mix = Mix(np.full(3, 1 / 3), np.log(SOURCE), "estimate")
    count, whole, found = pooled(rows, "by-site", cases, mix)
    assert count == 6002
    by_site = {context.value: context for context in found}
    assert list(by_site) == ["north", "south", "west"]
    np.testing.assert_allclose(by_site["north"].mix, north, atol=0.03)
    np.testing.assert_allclose(by_site["south"].mix, south, atol=0.03)
    assert np.abs(by_site["west"].mix - whole).sum() < 0.25 * np.abs(north - whole).sum()
    assert whole.sum() == pytest.approx(1)
    assert pooled(rows, "another", cases, mix)[0] == 0
