"""The Try page: one scoring, and the dial redraws the answer as the service itself would give it."""

import numpy as np
import pytest

from service.contract.adjustment import adjust_logits, log_source_prior, log_target_prior, softmax


@pytest.mark.parametrize("loss_tau", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 7.0])
def test_the_page_adjusts_as_the_contract_does(open_page, tau, loss_tau):
    rng = np.random.default_rng(0)
    logits, counts = rng.normal(0, 4, 12), rng.integers(1, 5000, 12).astype(float)
    target = rng.random(12)
    target[3] = 0.0
    found = open_page().evaluate(
        """async ([logits, counts, target, lossTau, tau]) => {
            const f = await import("/console/formula.js");
            return f.adjusted(logits, f.logSource(counts, lossTau, counts.length), f.logNormalised(target), tau);
        }""",
        [logits.tolist(), counts.tolist(), target.tolist(), loss_tau, tau],
    )
    expected = softmax(
        adjust_logits(
            logits,
            log_source_prior=log_source_prior(counts, loss_tau=loss_tau),
            log_target_prior=log_target_prior(target),
            tau=tau,
        )
    )
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_places_where_the_dial_changes_the_answer_are_exact(open_page):
    rng = np.random.default_rng(1)
    log_sigma = log_source_prior(np.exp(rng.uniform(0, 7, 30)), loss_tau=0)
    logits = log_sigma * rng.uniform(0.5, 2, 30)
    log_rho = np.zeros(30)
    flips = open_page().evaluate(
        """async ([logits, sigma, rho]) => (await import("/console/formula.js")).flips(logits, sigma, rho, 3)""",
        [logits.tolist(), log_sigma.tolist(), log_rho.tolist()],
    )
    assert len(flips) >= 2
    taus = np.linspace(0, 3, 3001)
    best = (logits + taus[:, None] * (log_rho - log_sigma)).argmax(axis=1)
    changes = np.flatnonzero(np.diff(best))
    assert [flip["to"] for flip in flips] == best[changes + 1].tolist()
    assert [flip["tau"] for flip in flips] == pytest.approx(taus[changes], abs=1.1e-3)


def test_the_dial_redraws_without_asking_the_service_again(open_page):
    page = open_page()
    page.get_by_role("button", name="Sample 10: 9").click()
    page.wait_for_function("document.querySelector('.verdict')")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    before = page.locator(".before-after").inner_text()
    page.get_by_label("τ, how much").fill("0")
    page.wait_for_function(
        "before => document.querySelector('.before-after').innerText !== before", arg=before
    )
    assert asked == []
    cells = page.locator(".before-after tbody tr").first.locator(".number").all_inner_texts()
    assert cells[0] == cells[1]  # as trained = adjusted at tau 0
