"""What training feeds a network is what the service feeds the graph: pixels and words."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from service.contract.bundle import load_bundle
from service.contract.inputs.spec import InputSpec
from service.graph.session import open_graph
from service.wire.images import image_array
from tests.support import data_files as files
from training.data import pixels
from training.data.dataset import ImageSpec
from training.data.pixels import normalise
from training.data.text import MANY_TEXTS, Vocabulary
from training.learning.networks import build
from training.run.export import check_agreement, export
from training.run.prepare import prepare_data
from training.run.recipe_file import make


@pytest.mark.parametrize("resize", ["stretch", "crop", 40])
@pytest.mark.parametrize("color", ["RGB", "L"])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "turned", "large"])
def test_an_image_file_becomes_the_tensor_that_the_service_makes_of_it(
    tmp_path, resize, color, form
):
    size = (900, 700) if form == "large" else (61, 47)
    image = files.picture(np.random.default_rng(0), 1, size)
    path = tmp_path / "one"
    exif = Image.Exif()
    exif[0x0112] = 6 if form == "turned" else 1
    image.save(path, "PNG" if form == "PNG" else "JPEG", exif=exif)
    channels = 3 if color == "RGB" else 1
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    ours = ImageSpec(size=(32, 36), color=color, resize=resize, mean=mean, std=std)
    theirs = InputSpec(
        name="input", kind="image", shape=[None, channels, 32, 36], dtype="float32", size=[32, 36],
        color=color, resize=resize, mean=list(mean), std=list(std), layout="NCHW",
    )  # fmt: skip
    served = image_array([path.read_bytes()], theirs)
    assert np.array_equal(normalise(pixels.decode(path, ours)[None], ours), served)


def test_a_text_graph_answers_strings_as_the_network_answers_their_words(tmp_path):
    texts, _ = files.texts((20, 10, 5))
    vocabulary = Vocabulary.learnt(texts)
    torch.manual_seed(0)
    network = build("text", num_classes=3, input_shape=(), idf=vocabulary.idf).eval()
    odd = ["", "   ", "GOOD, bad.", "naïve ÉTÉ unheard", "good\tgreat\nfine", "a " * 500]
    asked = np.array([*texts, *odd], dtype=object)
    numbers = torch.from_numpy(vocabulary.encode(list(asked)))
    with torch.no_grad():
        expected = network(numbers).numpy()
    path = tmp_path / "model.onnx"
    export(network, numbers, path, vocabulary=vocabulary)
    check_agreement(path, iter([asked]), expected)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    alone = np.concatenate(
        [session.run(None, {"input": asked[i : i + 1]})[0] for i in range(len(asked))]
    )
    assert np.allclose(alone, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "network"),
    [
        ("characters", "text"),
        ("characters", "tfidf"),
        ("subwords", "tfidf"),
        ("words", "tfidf"),
        ("split-words", "tfidf"),
    ],
)
def test_a_graph_of_texts_answers_strings_as_the_network_answers_their_tokens(
    tmp_path, tokens, network
):
    texts = [
        "今天天气很好",
        "今天很坏",
        "Good day",
        "好",
        "b",
        "ab",
        "bb a",
        "good good dayly",
        "good-day_x b2",
    ]
    vocabulary = Vocabulary.learnt(texts, tokens=tokens)
    torch.manual_seed(0)
    network = build(network, num_classes=3, input_shape=(), idf=vocabulary.idf).eval()
    odd = ["", " ", "天", "GOOD", "b\nb", "\t", "é天x" * 50, "!?", "(b2)", "DAYLY/b—good", "b\0ab"]
    asked = np.array([*texts, *odd], dtype=object)
    numbers = torch.from_numpy(vocabulary.encode(list(asked)))
    with torch.no_grad():
        expected = network(numbers).numpy()
    path = tmp_path / "model.onnx"
    export(network, numbers, path, vocabulary=vocabulary)
    check_agreement(path, iter([asked]), expected)
    check_agreement(path, iter([asked[i : i + 1] for i in range(len(asked))]), expected)


@pytest.mark.parametrize("network", ["text", "tfidf"])
def test_texts_of_a_tokenizer_have_the_logits_of_the_network_in_the_service(
    command, tmp_path, network
):
    texts, labels = files.texts((30, 20, 10))
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[PAD]", "[UNK]"])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(tmp_path / "own.json"))
    data = {"x_train": texts, "y_train": labels, "x_test": texts[::3], "y_test": labels[::3]}
    np.savez(tmp_path / "own.npz", **{name: np.array(value) for name, value in data.items()})
    settings = {"data": f"npz:{tmp_path / 'own.npz'}", "tokens": str(tmp_path / "own.json")}
    kept = ("--models", tmp_path / "models", "--runs", tmp_path / "runs", "--quiet", "--json")
    length = ("--steps", 5) if network == "text" else ()
    flags = (part for name, value in settings.items() for part in (f"--{name}", value))
    code, found, _ = command("fit", *flags, "--network", network, *length, *kept)
    assert code == 0
    folder = Path(found["bundle"])

    vocabulary = prepare_data(make(None, settings)).vocabulary
    own = build(network, num_classes=3, input_shape=(), idf=vocabulary.idf).eval()
    own.load_state_dict(torch.load(folder / "weights.pt", weights_only=True)["state"])
    asked = np.array([*texts, "", "GOOD-bad 日本", "good " * 700], dtype=object)
    with torch.no_grad():
        expected = own(torch.from_numpy(vocabulary.encode(asked.tolist()))).numpy()
    graph = open_graph(folder, load_bundle(folder), provider="cpu")
    rows = len(asked)
    served = graph.run(
        asked,
        tau=np.zeros(rows, np.float32),
        prior_index=np.zeros(rows, np.int64),
        prior_table=np.zeros((1, 3), np.float32),
        top_k=1,
        with_logits=True,
    )
    assert np.abs(served.logits - expected).max() < 1e-6 * max(1.0, np.abs(expected).max())


def test_runs_of_characters_are_all_those_of_one_to_three():
    vocabulary = Vocabulary.learnt(["ABAB"], tokens="characters")
    assert set(vocabulary.keys) == {"a", "b", "ab", "ba", "aba", "bab"}
    assert np.count_nonzero(vocabulary.encode(["abX"])) == 3  # a, b, ab


def test_split_words_end_at_every_character_that_is_no_letter_digit_or_underscore():
    vocabulary = Vocabulary.learnt(["Text-based, (C++) naïve_2/x"], tokens="split-words")
    assert set(vocabulary.keys) == {"text", "based", "c", "naïve_2", "x"}
    assert vocabulary.encode(["x.text"]).tolist() == [
        [vocabulary.keys["x"], vocabulary.keys["text"]]
    ]


def test_words_of_a_single_text_count_among_many_texts_only_for_networks_that_want_them():
    texts = [f"good day{i} of {'rain' if i % 2 else 'sun'}" for i in range(MANY_TEXTS)]
    common = {"good", "of", "rain", "sun"}
    assert set(Vocabulary.learnt(texts).keys) == common
    assert set(Vocabulary.learnt(texts, with_rare=True).keys) > common | {"day7"}
    runs = [Vocabulary.learnt(texts, tokens="subwords", with_rare=each).keys for each in (0, 1)]
    assert runs[0] == runs[1]
    alone = [f"day{i}" for i in range(MANY_TEXTS)]
    assert Vocabulary.learnt(alone, with_rare=True).size == 0


def test_punctuation_and_capitals_do_not_make_another_word():
    vocabulary = Vocabulary.learnt(["Good, good. GOOD!", "good bad"])
    numbers = vocabulary.encode(["good", "Good,", "GOOD!", "unheard"])[:, 0].tolist()
    assert numbers == [numbers[0]] * 3 + [0]
    assert vocabulary.size == 2


def test_a_vocabulary_has_one_order_whatever_the_order_of_sets_in_a_process():
    learn = (
        "from training.data.text import MANY_TEXTS, Vocabulary\n"
        "texts = ['Good, good. GOOD! bad', 'bad; worse, (worst)', '\"bad\" worst!']\n"
        "for tokens in ('words', 'split-words', 'subwords'):\n"
        "    print(list(Vocabulary.learnt(texts, tokens=tokens).keys.items()))\n"
    )
    found = [
        subprocess.run(
            [sys.executable, "-c", learn],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert found[0] == found[1] != b""


def test_a_cut_off_png_is_refused(tmp_path):
    buffer = io.BytesIO()
    files.picture(np.random.default_rng(0), 0).save(buffer, "PNG")
    path = tmp_path / "one.png"
    path.write_bytes(buffer.getvalue()[:-8])
    with pytest.raises(ValueError, match=r"one\.png"):
        pixels.check(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_bytes_after_the_end_of_an_image_are_ignored_by_service_and_training_alike(tmp_path, form):
    buffer = io.BytesIO()
    files.picture(np.random.default_rng(0), 1, (36, 32)).save(buffer, form)
    path = tmp_path / "one"
    path.write_bytes(buffer.getvalue() + bytes(100))
    ours = ImageSpec(
        size=(32, 36), color="RGB", resize="stretch", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    theirs = InputSpec(
        name="input", kind="image", shape=[None, 32, 36, 3], dtype="uint8", size=[32, 36],
        color="RGB", resize="stretch", layout="NHWC",
    )  # fmt: skip
    served = image_array([path.read_bytes()], theirs)
    pixels.check(path)
    assert np.array_equal(pixels.decode(path, ours)[None], served)
