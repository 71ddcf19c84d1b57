"""A transformer with random weights, exported by torch, is imported with its tokenizer and answers
as the network does in float64.
"""

import contextlib
import io
import json
import logging
import warnings

import httpx
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from service.__main__ import main as service
from service.contract.adjustment import adjust_logits, softmax
from tests.support.server import metric, running
from training.commands.cli import main as training

WORDS = ["[PAD]", "[UNK]", "good", "bad", "very", "film", "the", "a", "plot", "and", "no"]
CLASSES = ["praise", "blame", "neither"]
LONGEST = 12
SOURCE = [300.0, 40.0, 5.0]
TEXTS = [
    "the very good film",
    "bad",
    "no plot and a very very bad film and no good",
    "unknown words here",
    " ".join(["the", "film"] * 20),  # longer than the network takes
]


class Encoder(nn.Module):
    """input_ids, attention_mask, token_type_ids [batch, tokens] → logits [batch, 3], as BERT."""

    def __init__(self, width=16, heads=2):
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(len(WORDS), width)
        self.places = nn.Embedding(LONGEST, width)
        self.types = nn.Embedding(2, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "norm": nn.LayerNorm(width),
                    "wide": nn.Linear(width, 4 * width),
                    "narrow": nn.Linear(4 * width, width),
                    "last": nn.LayerNorm(width),
                }
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, len(CLASSES))

    def forward(self, input_ids, attention_mask, token_type_ids):
        places = torch.arange(input_ids.shape[1]).unsqueeze(0)
        x = self.words(input_ids) + self.places(places) + self.types(token_type_ids)
        hidden = (1 - attention_mask)[:, None, None, :].to(x.dtype) * -1e9
        for block in self.blocks:
            parts = block["qkv"](x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            q, k, v = parts[0], parts[1], parts[2]
            weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + hidden, dim=-1)
            x = block["norm"](x + block["out"]((weights @ v).transpose(1, 2).flatten(2)))
            x = block["last"](x + block["narrow"](torch.nn.functional.gelu(block["wide"](x))))
        return self.head(x[:, 0])


def tokenizer():
    known = {word: index for index, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = Encoder().eval()
    for parameter in made.parameters():
        parameter.data *= 2  # so that the classes differ
    return made


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """What Optimum writes."""
    home = tmp_path_factory.mktemp("optimum")
    ones = torch.ones(2, 5, dtype=torch.int64)
    example = (ones, ones.clone(), torch.zeros_like(ones))  # one tensor twice would be one input
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=LONGEST)}
    logging.disable(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, example, dynamo=True, opset_version=20, verbose=False,
            input_names=["input_ids", "attention_mask", "token_type_ids"],
            output_names=["logits"], dynamic_shapes=(axes,) * 3,
        )  # fmt: skip
    logging.disable(logging.NOTSET)
    program.save(str(home / "model.onnx"))
    tokenizer().save(str(home / "tokenizer.json"))
    names = {"id2label": dict(enumerate(CLASSES)), "max_position_embeddings": LONGEST}
    (home / "config.json").write_text(json.dumps(names), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    models_folder = tmp_path_factory.mktemp("models")
    (folder / "counts.json").write_text(json.dumps(SOURCE), encoding="utf-8")
    arguments = ["import", str(folder), "--name", "reviews", "--models", str(models_folder)]
    with contextlib.redirect_stdout(io.StringIO()):
        assert service([*arguments, "--class-counts", str(folder / "counts.json")]) == 0
    return models_folder


def logits_of(network, texts):
    """[n, 3] by the network in float64, a text at a time, without padding."""
    exact = Encoder().double().eval()
    exact.load_state_dict({name: value.double() for name, value in network.state_dict().items()})
    made = tokenizer()
    made.enable_truncation(LONGEST)
    found = []
    for text in texts:
        ids = torch.tensor([made.encode(text).ids])
        with torch.no_grad():
            found.append(exact(ids, torch.ones_like(ids), torch.zeros_like(ids))[0].numpy())
    return np.array(found)


def test_it_answers_as_the_network_does_in_float64_at_every_tau(imported, network):
    logits = logits_of(network, TEXTS)
    with running(imported, start_seconds=100) as server:
        for tau in (0.0, 0.37, 1.0):
            body = {"instances": TEXTS, "parameters": {"tau": tau, "top_k": 3}}
            answer = httpx.post(f"{server.url}/models/reviews/predict", json=body).json()
            adjusted = adjust_logits(
                logits, log_source_prior=np.log(np.array(SOURCE) / sum(SOURCE)),
                log_target_prior=np.zeros(3), tau=tau,
            )  # fmt: skip
            served = [
                [t["probability"] for t in sorted(row["top"], key=lambda top: top["index"])]
                for row in answer["predictions"]
            ]
            np.testing.assert_allclose(served, softmax(adjusted), atol=1e-5)
        table = "text\n" + "\n".join(TEXTS)
        rows = httpx.post(
            f"{server.url}/predict?tau=0", content=table, headers={"content-type": "text/csv"}
        ).json()["predictions"]
        assert [row["index"] for row in rows] == logits.argmax(axis=1).tolist()
        scrape = httpx.get(f"{server.url}/metrics").text
        assert metric(scrape, "priordial_batch_rows_sum", model="reviews") == 4 * len(TEXTS)
        empty = httpx.post(f"{server.url}/predict?tau=0", json={"instances": [""]})
        assert empty.status_code == 200, empty.text


def test_it_is_scored_and_calibrated_as_our_own_models_are(imported, network, tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[2:], rng.integers(1, 8))) for _ in range(400)]
    posteriors = softmax(logits_of(network, texts))
    labels = [CLASSES[rng.choice(3, p=row)] for row in posteriors]
    table = tmp_path / "reviews.csv"
    lines = ["label,text", *(f"{name},{text}" for name, text in zip(labels, texts, strict=True))]
    table.write_text("\n".join(lines), encoding="utf-8")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        spec = f"table:{table}?label=label&text=text"
        arguments = ["evaluate", str(imported / "reviews" / "1"), "--data", spec, "--tau", "0"]
        assert training([*arguments, "--publish", "--json"]) == 0
    scores = json.loads(out.getvalue())
    best = [CLASSES[index] for index in posteriors.argmax(axis=1)]
    assert scores["error"] == pytest.approx(np.mean(np.array(best) != np.array(labels)))
    version = imported / "reviews" / "2"
    assert scores["published"] == str(version)
    report = json.loads((version / "report.json").read_text(encoding="utf-8"))
    assert report["samples"][0]["instance"] in texts
    assert (version / "tokenizer.json").is_file()
