"""The serving process starts, answers and ends."""

import httpx
import numpy as np
import pytest

from service.contract.adjustment import adjust_logits
from tests.support.server import running, starting
from tests.support.small_models import COUNTS, inputs, publish_model, weights


@pytest.fixture
def models(tmp_path):
    publish_model(tmp_path / "models")
    return tmp_path / "models"


def test_a_served_answer_is_the_formula(models):
    x = inputs(7)
    w, b = weights()
    frequencies = np.array(COUNTS) / sum(COUNTS)
    z = adjust_logits(
        (x @ w + b).astype(np.float64),
        log_source_prior=np.log(frequencies),
        log_target_prior=np.log(np.full(len(COUNTS), 1 / len(COUNTS))),
        tau=1.0,
    )
    wanted = np.exp(z - z.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    with running(models) as server:
        answer = httpx.post(f"{server.url}/predict?top_k=5", json={"instances": x.tolist()})
        assert server.terminate() == 0
    assert answer.status_code == 200, answer.text
    for row, prediction in enumerate(answer.json()["predictions"]):
        for entry in prediction["top"]:
            assert entry["probability"] == pytest.approx(wanted[row, entry["index"]], abs=1e-5)


def test_a_sigterm_ends_a_start_that_missed_being_cancelled(models):
    with starting(models, program=("tests.support.deaf_server",)) as server:
        server.wait_for("the start has begun")
        assert server.terminate() == 0
        assert "ready on http" not in server.log


def test_a_start_that_fails_says_why_in_one_line_and_exits_1(models):
    with running(models) as first:
        port = int(first.url.rsplit(":", 1)[1])
        with starting(models, port=port) as second:
            assert second.exit() == 1
            assert second.log.splitlines()[-1].startswith("priordial: cannot listen on 127.0.0.1:")
