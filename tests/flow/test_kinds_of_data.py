"""Text, image and table models answer through the service as `training evaluate` scores them."""

import base64
import csv
import json
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.support import data_files as files
from tests.support.server import running
from training.commands.cli import main
from training.data.sources import load as data


def write_table(path, columns):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("own")


@pytest.fixture(scope="module")
def specs(home):
    """One specification a kind of data, each a few dozen rows of three classes."""
    reviews, labels = files.texts((60, 30, 12))
    write_table(home / "reviews.csv", {"review": reviews, "label": labels})
    rng = np.random.default_rng(0)
    kinds = np.repeat(["ash", "elm", "oak"], [60, 30, 12])
    heights = 10 * rng.normal(size=102) + np.repeat([0, 15, 30], [60, 30, 12])
    widths = 0.01 * rng.normal(size=102)
    write_table(home / "trees.csv", {"height": heights, "tree": kinds, "width": widths})
    letters = ("好天", "坏雨", "平常")
    said = ["".join(rng.permutation([*letters[i % 3], *"今日我看"])) for i in range(102)]
    moods = [("good", "bad", "usual")[i % 3] for i in range(102)]
    write_table(home / "sentences.csv", {"sentence": said, "mood": moods})
    people = {
        "city": np.where(
            rng.random(102) < 0.9, np.repeat(["Łódź", "", "São Paulo"], [60, 30, 12]), "elsewhere"
        ),
        "wage": [value if i % 5 else "" for i, value in enumerate(heights.round(3))],
        "since": 1_700_000_000 + (10 * widths / 0.01).round().astype(int),
        "club": np.where(rng.random(102) < 0.5, "true", "false"),
        "logits": heights.round(2),
    }
    write_table(home / "people.csv", people | {"plan": kinds})
    files.write_class_folders(home / "pictures", (40, 20), names=("ant", "bee"))
    files.write_class_folders(home / "pictures", (10,), names=("cat",), suffix="png")
    return {
        "reviews": f"table:{home / 'reviews.csv'}?label=label&text=review",
        "sentences": f"table:{home / 'sentences.csv'}?label=mood&text=sentence",
        "trees": f"table:{home / 'trees.csv'}?label=tree",
        "people": f"table:{home / 'people.csv'}?label=plan&without=logits",
        "notes": f"table:{home / 'reviews.csv'}?label=label&text=review",
        "pictures": f"images:{home / 'pictures'}",
    }


@pytest.fixture(scope="module")
def served(home, specs):
    networks = {
        "reviews": "text",
        "sentences": "text",
        "trees": "mlp-pieces",
        "people": "auto",
        "notes": "tfidf",
        "pictures": "cnn",
    }
    tokens = {"sentences": "characters", "notes": "subwords"}
    for name, spec in specs.items():
        arguments = (
            "fit",
            "--name",
            name,
            "--data",
            spec,
            "--network",
            networks[name],
            "--steps",
            40,
            "--batch",
            32,
            "--models",
            home / "models",
            "--runs",
            home / "runs",
            "--quiet",
            "--threads",
            1,
            *(["--tokens", tokens[name]] if name in tokens else []),
        )
        assert main([str(argument) for argument in arguments]) == 0
    with running(home / "models") as server:
        yield server


def instances(split):
    """The rows of a split as a JSON body holds them."""
    paths = getattr(split.inputs, "paths", None)
    if paths is not None:
        return [{"b64": base64.b64encode(Path(path).read_bytes()).decode()} for path in paths]
    rows = np.asarray(split.inputs)
    if rows.dtype.names is None:
        return rows.tolist()
    # a missing number or category is null in JSON, and a value of a column stands alone
    return [
        {
            name: None if (value := row[name].item()) != value or value == "" else value
            for name in rows.dtype.names
        }
        for row in rows
    ]


def probabilities(server, name, body, **request):
    answer = httpx.post(
        f"{server.url}/models/{name}/predict?tau=1&top_k=3", content=body, timeout=30, **request
    )
    assert answer.status_code == 200, answer.text
    found = np.zeros((len(answer.json()["predictions"]), 3))
    for row, prediction in enumerate(answer.json()["predictions"]):
        for entry in prediction["top"]:
            found[row, entry["index"]] = entry["probability"]
    return found


@pytest.mark.parametrize("name", ["reviews", "sentences", "trees", "people", "notes", "pictures"])
def test_a_model_of_each_kind_answers_as_training_evaluates_it(home, specs, served, capsys, name):
    test = data.load(specs[name], seed=0).test
    found = probabilities(served, name, json.dumps({"instances": instances(test)}))
    code = main(
        [
            "evaluate",
            str(home / "models" / name / "1"),
            "--data",
            specs[name],
            "--tau",
            "1",
            "--json",
        ]
    )
    scores = json.loads(capsys.readouterr().out)
    assert (code, scores["n"]) == (0, len(test))
    wrong = found.argmax(axis=1) != test.labels
    nll = -np.log(found[np.arange(len(test)), test.labels])
    classes = [test.labels == label for label in range(3)]
    assert scores["per_class"] == pytest.approx([wrong[rows].mean() for rows in classes])
    # the classes weigh alike, as the target is uniform
    assert scores["nll"] == pytest.approx(np.mean([nll[rows].mean() for rows in classes]), rel=1e-4)
    assert scores["balanced_error"] < 0.4


def test_the_bytes_of_a_picture_are_answered_as_their_base64(specs, served):
    test = data.load(specs["pictures"], seed=0).test
    together = probabilities(served, "pictures", json.dumps({"instances": instances(test)}))
    for suffix, media in ((".jpg", "image/jpeg"), (".png", "image/png")):
        row = next(i for i, path in enumerate(test.inputs.paths) if path.endswith(suffix))
        body = Path(test.inputs.paths[row]).read_bytes()
        alone = probabilities(served, "pictures", body, headers={"content-type": media})
        assert np.allclose(alone[0], together[row], atol=1e-5)


def test_a_text_that_is_too_long_is_422(served):
    body = json.dumps({"instances": ["fine", "word " * 100_000]})
    answer = httpx.post(f"{served.url}/models/reviews/predict", content=body)
    assert answer.status_code == 422
    assert "instance 1 is a text of 500,000 characters" in answer.json()["detail"]
