"""Models of several inputs, of missing values and of tokens are asked by name, list, column and
tensor.
"""

import asyncio
import io
import json
import shutil

import httpx
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from service.__main__ import main
from service.contract.adjustment import softmax
from tests.support.foreign_models import named, save
from tests.support.server import running
from tests.support.table_models import (
    CLASSES,
    ROWS,
    WEIGHTS,
    bert_like,
    missing_model,
    table_model,
    table_probabilities,
)

LISTS = [[row["age"], row["fare"], row["sex"]] for row in ROWS]
COLUMNS = {name: [row[name] for row in ROWS] for name in ("age", "fare", "sex")}


def write_folder(home):
    """A folder as Optimum writes it, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    home.mkdir()
    (home / "model.onnx").write_bytes(bert_like().SerializeToString())
    words = ["[PAD]", "[UNK]", "good", "bad", "very", "film", "the"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(home / "tokenizer.json"))
    config = {"id2label": dict(enumerate(CLASSES)), "max_position_embeddings": 6}
    (home / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return home


def take_missing_texts(models):
    """A copy of the table's model, `gaps`, whose column of texts takes null."""
    shutil.copytree(models / "table", models / "gaps")
    record = models / "gaps" / "1" / "model.json"
    found = json.loads(record.read_text(encoding="utf-8")) | {"name": "gaps"}
    next(each for each in found["inputs"] if each["name"] == "sex")["missing"] = True
    record.write_text(json.dumps(found), encoding="utf-8")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    home = tmp_path_factory.mktemp("tables")
    names = named(home, CLASSES)
    for name, model in (("table", table_model()), ("missing", missing_model())):
        (home / name).mkdir()
        path = save(home / name, model)
        arguments = ["import", str(path), "--name", name, "--models", str(home / "models"), *names]
        assert main(arguments) == 0
    take_missing_texts(home / "models")
    folder = write_folder(home / "bert")
    assert main(["import", str(folder), "--name", "bert", "--models", str(home / "models")]) == 0
    with running(home / "models", start_seconds=100) as server:
        yield server.url


def post(url, model, body, **parameters):
    return httpx.post(
        f"{url}/models/{model}/predict",
        json={**body, "parameters": {"top_k": 3, "tau": 0, **parameters}},
        timeout=30,
    )


def table_of(answer):
    assert answer.status_code == 200, answer.text
    found = np.zeros((len(answer.json()["predictions"]), 3))
    for row, prediction in enumerate(answer.json()["predictions"]):
        for each in prediction["top"]:
            found[row, each["index"]] = each["probability"]
    return found


@pytest.mark.parametrize(
    "body",
    [
        {"instances": ROWS},
        {"instances": LISTS},
        {"inputs": COLUMNS},
        {"instances": [ROWS[0], LISTS[1], ROWS[2]]},
    ],
)
def test_rows_come_as_objects_lists_and_columns(url, body):
    np.testing.assert_allclose(table_of(post(url, "table", body)), table_probabilities(), atol=1e-6)


@pytest.mark.parametrize("tau", [0.37, 1])
def test_columns_are_adjusted_by_the_formula(url, tau):
    prior = {"label_frequencies": [9, 3, 1], "target": [1, 2, 3]}
    found = table_of(post(url, "table", {"instances": ROWS}, tau=tau, prior=prior))
    shift = np.log([1 / 6, 2 / 6, 3 / 6]) - np.log([9 / 13, 3 / 13, 1 / 13])
    wanted = softmax(np.log(table_probabilities()) + tau * shift)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_rows_of_many_callers_share_batches_and_keep_their_own_answers(url):
    async def go():
        async with httpx.AsyncClient(timeout=30) as client:
            asked = [
                client.post(
                    f"{url}/models/table/predict",
                    json={"instances": [ROWS[i % 3]], "parameters": {"tau": 0, "top_k": 3}},
                )
                for i in range(30)
            ]
            return await asyncio.gather(*asked)

    answers = [table_of(answer)[0] for answer in asyncio.run(go())]
    wanted = table_probabilities()[[i % 3 for i in range(30)]]
    np.testing.assert_allclose(answers, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instances": [ROWS[0], {"age": 1, "fare": 2}]}, "instance 1 lacks column 'sex'"),
        ({"instances": [{**ROWS[0], "agee": 1}]}, "instance 0 has an unknown column 'agee'"),
        ({"instances": [{"agee": 1, "fare": 2, "sex": "f"}]}, "did you mean 'age'?"),
        ({"instances": [{**ROWS[0], "age": None}]}, "column 'age': instance 0"),
        ({"instances": [ROWS[0], {**ROWS[0], "age": "old"}]}, "column 'age': instance 1"),
        (
            {"instances": [{**ROWS[0], "sex": 1}]},
            "column 'sex': instance 0 holds 1; expected a string",
        ),
        (
            {"instances": [[1, 2]]},
            "instance 0 is a list; expected an object or a list of age, fare, sex",
        ),
        ({"inputs": {"age": [1], "fare": [1, 2], "sex": ["f"]}}, "columns of different lengths"),
        ({"inputs": {"age": 1}}, "column 'age' is 1; expected a list"),
        ({"inputs": []}, "inputs is a list; expected an object"),
        ({"inputs": COLUMNS, "instances": ROWS}, "'instances' and 'inputs'; expected only one"),
    ],
)
def test_a_fault_names_its_row_and_its_column(url, body, message):
    answer = post(url, "table", body)
    assert answer.status_code in {400, 422}
    assert message in answer.json()["detail"]


def test_an_array_is_refused_with_the_names_of_the_columns(url):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 3), np.float32))
    answer = httpx.post(
        f"{url}/models/table/predict",
        content=buffer.getvalue(),
        headers={"content-type": "application/x-npy"},
    )
    assert (answer.status_code, "the columns age, fare, sex" in answer.json()["detail"]) == (
        422,
        True,
    )


def test_named_tensors_of_the_open_inference_protocol_are_the_columns(url):
    about = httpx.get(f"{url}/v2/models/table").json()["inputs"]
    assert [each["name"] for each in about[:3]] == ["age", "fare", "sex"]
    tensors = [
        {"name": n, "datatype": kind, "shape": [3, 1], "data": COLUMNS[n]}
        for n, kind in (("sex", "BYTES"), ("age", "FP32"), ("fare", "FP32"))
    ]
    answer = httpx.post(
        f"{url}/v2/models/table/infer", json={"inputs": tensors, "parameters": {"tau": 0}}
    )
    found = np.array(answer.json()["outputs"][0]["data"]).reshape(3, 3)
    np.testing.assert_allclose(found, table_probabilities(), atol=1e-6)
    tensors[1]["shape"], tensors[1]["data"] = [2, 1], [1, 2]
    answer = httpx.post(f"{url}/v2/models/table/infer", json={"inputs": tensors})
    assert (answer.status_code, "rows" in answer.json()["error"]) == (422, True)
    answer = httpx.post(f"{url}/v2/models/table/infer", json={"inputs": tensors[:1]})
    assert (answer.status_code, "'age' is missing" in answer.json()["error"]) == (422, True)


def test_every_description_of_a_model_of_columns_is_answered(url):
    for path in (
        "/models/table",
        "/v2/models/table/config",
        "/openapi.json",
        "/models",
        "/metrics",
    ):
        assert httpx.get(url + path, timeout=30).status_code == 200
    raw = httpx.post(
        f"{url}/v2/models/table/infer",
        content=b"1234",
        headers={"Inference-Header-Content-Length": "0"},
    )
    assert raw.status_code == 400


# ---- missing values


def test_missing_values_come_as_null_as_nan_in_arrays_and_as_tensors(url):
    rows = np.array([[1, np.nan], [np.nan, np.nan], [2, 3]], np.float32)
    wanted = softmax(np.where(np.isnan(rows), 10, rows) @ WEIGHTS.astype(np.float64))
    instances = [[None if np.isnan(v) else float(v) for v in row] for row in rows]
    found = table_of(post(url, "missing", {"instances": instances}))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    buffer = io.BytesIO()
    np.save(buffer, rows)
    answer = httpx.post(
        f"{url}/models/missing/predict?tau=0&top_k=3",
        content=buffer.getvalue(),
        headers={"content-type": "application/x-npy"},
    )
    np.testing.assert_allclose(table_of(answer), wanted, atol=1e-6)
    tensor = {
        "name": "x",
        "datatype": "FP32",
        "shape": [3, 2],
        "parameters": {"binary_data_size": rows.nbytes},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"tau": 0}}).encode()
    answer = httpx.post(
        f"{url}/v2/models/missing/infer",
        content=header + rows.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    found = np.array(answer.json()["outputs"][0]["data"]).reshape(3, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("form", ["objects", "lists", "columns", "parquet"])
def test_null_is_the_empty_text_where_the_model_takes_it(url, form):
    rows = [ROWS[0] | {"sex": None}, ROWS[1]]
    wanted = table_probabilities([ROWS[0] | {"sex": ""}, ROWS[1]])
    bodies = {
        "objects": {"instances": rows},
        "lists": {"instances": [list(row.values()) for row in rows]},
        "columns": {"inputs": {name: [row[name] for row in rows] for name in rows[0]}},
    }
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), buffer)

    def asked(model):
        if form in bodies:
            return post(url, model, bodies[form])
        return httpx.post(
            f"{url}/models/{model}/predict?tau=0&top_k=3",
            content=buffer.getvalue(),
            headers={"content-type": "application/vnd.apache.parquet"},
        )

    np.testing.assert_allclose(table_of(asked("gaps")), wanted, atol=1e-6)
    refused = asked("table")
    assert refused.status_code == 422
    assert "sex" in refused.json()["detail"]


def test_infinity_is_no_missing_value(url):
    buffer = io.BytesIO()
    np.save(buffer, np.array([[1, 2], [1, np.inf]], np.float32))
    answer = httpx.post(
        f"{url}/models/missing/predict",
        content=buffer.getvalue(),
        headers={"content-type": "application/x-npy"},
    )
    assert (answer.status_code, "instance 1 holds infinity" in answer.json()["detail"]) == (
        422,
        True,
    )


# ---- texts of a transformer


def test_texts_of_a_transformer_are_tokenised_padded_and_truncated_in_the_service(url):
    texts = ["good", "bad film", "the very very good film", "the the the the the bad bad", "odd"]
    alone = [table_of(post(url, "bert", {"instances": [text]}))[0] for text in texts]
    together = table_of(post(url, "bert", {"instances": texts}))
    np.testing.assert_allclose(together, alone, atol=1e-6)
    model = {i.name: i for i in bert_like().graph.initializer}
    from onnx import numpy_helper

    table, out = (numpy_helper.to_array(model[n]).astype(np.float64) for n in ("table", "out"))
    ids = [[2], [3, 5], [6, 4, 4, 2, 5], [6, 6, 6, 6, 6, 3], [1]]
    wanted = softmax(np.stack([table[i].mean(axis=0) for i in ids]) @ out)
    np.testing.assert_allclose(together, wanted, atol=1e-6)


def test_null_in_the_inference_protocol_is_a_missing_value_where_the_model_takes_it(url):
    def asked(model, name, data):
        tensor = {"name": name, "datatype": "FP32", "shape": [1, len(data)], "data": data}
        more = [] if model == "missing" else [
            {"name": "fare", "datatype": "FP32", "shape": [1, 1], "data": [1.0]},
            {"name": "sex", "datatype": "BYTES", "shape": [1, 1], "data": ["f"]},
        ]  # fmt: skip
        return httpx.post(f"{url}/v2/models/{model}/infer", json={"inputs": [tensor, *more]})

    taken = asked("missing", "x", [1.5, None])
    assert taken.status_code == 200, taken.text
    rows = {"instances": [[1.5, None]], "parameters": {"top_k": 3, "tau": 0}}
    wanted = httpx.post(f"{url}/models/missing/predict", json=rows).json()["predictions"][0]["top"]
    by_index = [each["probability"] for each in sorted(wanted, key=lambda each: each["index"])]
    np.testing.assert_allclose(taken.json()["outputs"][0]["data"], by_index, atol=1e-7)
    refused = asked("table", "age", [None])
    assert refused.status_code == 422
    assert "input 'age' holds null; expected FP32" in refused.json()["detail"]
