"""`training score` and the service answer the same rows alike."""

import json

import httpx
import numpy as np
from pyarrow import parquet

from tests.support.server import running
from tests.support.small_models import inputs, publish_model
from training.run.score_rows import Scoring, score_rows


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
