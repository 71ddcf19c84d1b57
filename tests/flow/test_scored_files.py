"""`training score` and the service answer the same rows alike."""

import json

import httpx
import numpy as np
import onnx
import pytest
from pyarrow import parquet

from tests.support.server import running
from tests.support.small_models import inputs, publish_model
from training.run.scoring.score_rows import score_rows
from training.run.scoring.scorer import Scoring
from training.scores.source import measure


def test_a_scored_file_holds_the_answers_of_the_service(tmp_path):
    model = publish_model(tmp_path / "models", temperature=1.7)
    rows = inputs(200)
    np.save(tmp_path / "rows.npy", rows)
    prior = {"label_frequencies": [9, 7, 5, 3, 1], "target": [1, 2, 3, 4, 5]}
    (tmp_path / "prior.json").write_text(json.dumps(prior))
    with running(tmp_path / "models") as server:
        httpx.put(f"{server.url}/priors", json=prior).raise_for_status()
        for tau in (0, 0.37, 1):
            out = tmp_path / f"{tau}.parquet"
            scoring = Scoring(model=model, tau=tau, prior=str(tmp_path / "prior.json"))
            score_rows(str(tmp_path / "rows.npy"), out, scoring)
            found = parquet.read_table(out)
            answer = httpx.post(
                f"{server.url}/predict", params={"tau": tau}, json={"instances": rows.tolist()}
            ).json()
            served = answer["predictions"]
            assert found.column("label").to_pylist() == [row["label"] for row in served]
            for name, of in (
                ("probability", lambda row: row["probability"]),
                ("unadjusted_probability", lambda row: row["unadjusted"]["probability"]),
            ):
                np.testing.assert_allclose(
                    found.column(name).to_numpy(), [of(row) for row in served], atol=1e-6
                )


def test_the_class_mix_of_a_file_is_estimated_first_and_used_where_it_is_usable(tmp_path):
    source, mix = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.2, 0.7])
    rng = np.random.default_rng(3)

    def drawn(prior, n):
        labels = rng.choice(3, n, p=prior)
        x = rng.normal(size=(n, 3)) + 1.6 * np.eye(3)[labels]
        return (1.6 * x + np.log(source)).astype(np.float32), labels

    block, _ = measure(
        *drawn(source, 3000), log_source_prior=np.log(source), class_frequencies=source
    )
    identity = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["logits"])],
            "identity",
            [onnx.helper.make_tensor_value_info("x", 1, ["batch", 3])],
            [onnx.helper.make_tensor_value_info("logits", 1, ["batch", 3])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    model = publish_model(
        tmp_path / "models",
        model=identity,
        classes=3,
        input={"name": "x", "kind": "tensor", "shape": [None, 3], "dtype": "float32"},
        class_counts=[700, 200, 100],
        temperature=block.temperature,
        estimation=block.model_dump(mode="json", exclude_none=True),
    )
    rows, _ = drawn(mix, 3000)
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "noise.npy", rng.normal(scale=9, size=(3000, 3)).astype(np.float32))

    def scored(name):
        out = tmp_path / f"{name}.parquet"
        place = str(tmp_path / f"{name}.npy")
        found = score_rows(place, out, Scoring(model=model), estimate_first=True, block_rows=500)
        return found["estimate"], parquet.read_table(out)

    estimate, answers = scored("rows")
    assert estimate["verdict"] == "usable"
    assert estimate["used"]
    names = list(estimate["prior"])
    assert list(estimate["prior"].values()) == pytest.approx(mix.tolist(), abs=0.06)
    target = tmp_path / "target.json"
    target.write_text(json.dumps(estimate["candidate"]))
    plain = Scoring(model=model, prior=str(target))
    score_rows(str(tmp_path / "rows.npy"), tmp_path / "again.parquet", plain)
    again = parquet.read_table(tmp_path / "again.parquet")
    np.testing.assert_allclose(answers.column("probability"), again.column("probability"))
    refused, _ = scored("noise")
    assert refused["verdict"] == "not_explained"
    assert not refused["used"]
    assert set(names) == set(refused["candidate"])
