"""A model of images gets the pixels that its library feeds it, by flag, by recipe or from a
folder.
"""

import argparse
import io
import json

import httpx
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from service.commands.importing.huggingface import Folder, image_flags
from service.commands.importing.onnx_file import GraphInput
from service.commands.importing.preprocessing import PREPROCESSING, image_fields
from service.commands.importing.refusal import ImportRefused
from service.wire.images import image_array
from tests.support.foreign_models import named, save
from tests.support.server import running

COLOURS = ["red", "green", "blue"]
FLAGS = {
    "image": True,
    "preprocessing": None,
    "layout": None,
    "size": None,
    "color": None,
    "resize": None,
    "resample": None,
    "fill": None,
    "scale": None,
    "mean": None,
    "std": None,
}
INPUT = GraphInput("pixels", "float32", [None, 3, 224, 224])


def fields(found=INPUT, **flags):
    return image_fields(found, argparse.Namespace(**{**FLAGS, **flags}))


def colour_model(dtype=TensorProto.FLOAT):
    """pixels [batch, 3, 8, 8] → logits: the mean of each channel."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["wide"], ["logits"], axes=[2, 3], keepdims=0),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "colours",
        [value("pixels", dtype, ["batch", 3, 8, 8])],
        [value("logits", TensorProto.FLOAT, ["batch", 3])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def picture(colour, size=(12, 10)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("imagenet", {"resize": 256, "mean": [0.485, 0.456, 0.406], "color": "RGB", "scale": None}),
        ("timm", {"resize": 256, "resample": "bicubic"}),
        ("inception", {"mean": [0.5] * 3, "std": [0.5] * 3, "resize": 256}),
        ("keras-raw", {"scale": 1.0, "mean": None, "std": None, "resize": "stretch"}),
        ("caffe", {"scale": 1.0, "color": "BGR", "mean": [103.939, 116.779, 123.68], "std": None}),
        ("clip", {"resample": "bicubic", "mean": [0.48145466, 0.4578275, 0.40821073]}),
    ],
)
def test_a_recipe_is_known_by_its_name(name, wanted):
    found = fields(preprocessing=name)
    assert {key: found[key] for key in wanted} == wanted


def test_flags_override_a_recipe():
    found = fields(preprocessing="imagenet", mean="0.1", resize="letterbox", color="BGR")
    assert (found["mean"], found["resize"], found["color"]) == ([0.1] * 3, "letterbox", "BGR")
    assert found["std"] == [0.229, 0.224, 0.225]


def test_a_recipe_of_colours_is_averaged_for_grey_models():
    grey = GraphInput("pixels", "float32", [None, 28, 28, 1])
    found = fields(grey, preprocessing="imagenet")
    assert (found["color"], found["layout"], found["size"]) == ("L", "NHWC", [28, 28])
    assert found["mean"] == pytest.approx([0.449])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"preprocessing": "imagnet"}, "expected one of imagenet"),
        ({"resize": "zoom"}, "expected stretch, crop, letterbox, N or H,W"),
        ({"resize": "1,2,3"}, "expected stretch, crop, letterbox, N or H,W"),
        ({"scale": "big"}, r"expected 0\.\.1, 0\.\.255 or the number"),
        ({"mean": "1,2"}, "expected 3 numbers"),
        ({"color": "L"}, "--color is L; the graph takes 3 channels"),
        ({"image": False, "scale": "0..255"}, "--scale: only for models of images; add --image"),
    ],
)
def test_a_wrong_image_flag_is_refused_with_what_is_expected(flags, message):
    with pytest.raises(ImportRefused, match=message):
        fields(**flags)


@pytest.mark.parametrize("name", PREPROCESSING)
def test_every_recipe_makes_a_model_that_is_published(import_file, tmp_path, name):
    path = save(tmp_path, colour_model())
    status, bundle, err = import_file(path, *named(tmp_path, COLOURS), "--preprocessing", name)
    assert status == 0, err
    rows = image_array([picture("red")], bundle.input)
    assert rows.shape == (1, 3, 8, 8)
    for step in ("color", "resize", "range", "normalise", "layout"):
        assert f"image    {step}" in err


def test_a_model_of_pictures_that_is_imported_as_tensors_names_the_flag(import_file, tmp_path):
    path = save(tmp_path, colour_model())
    status, bundle, err = import_file(path, *named(tmp_path, COLOURS))
    assert status == 0
    assert "import it again with --image" in err
    body = picture("red")
    with running(tmp_path / "imported") as server:
        answer = httpx.post(f"{server.url}/predict", files={"image": body})
    assert answer.status_code == 422
    message = "takes tensor input, not images; to send pictures, import it again with --image"
    assert message in answer.json()["detail"]
    assert bundle.input.may_be_pixels
    last = bundle.input.model_copy(update={"shape": [None, 8, 8, 1]})
    assert last.may_be_pixels
    for shape in ([None, 8, 8, 8], [None, 3, 8], [None, 1, 1, 8]):
        assert not bundle.input.model_copy(update={"shape": shape}).may_be_pixels


def test_what_was_assumed_is_told_with_the_flag_that_changes_it(import_file, tmp_path):
    path = save(tmp_path, colour_model())
    _, _, err = import_file(path, *named(tmp_path, COLOURS), "--image")
    assert "0 … 1 (divided by 255)" in err
    assert "stretched to 8 × 8 (bilinear)" in err
    assert "--image-example FILE --expect CLASS" in err


def test_pixels_of_0_to_255_reach_a_model_that_scales_them_itself(import_file, tmp_path):
    path = save(tmp_path, colour_model())
    _, bundle, _ = import_file(path, *named(tmp_path, COLOURS), "--image", "--scale", "0..255")
    rows = image_array([picture((200, 100, 0))], bundle.input)
    np.testing.assert_array_equal(rows[0].mean(axis=(1, 2)), [200, 100, 0])


def test_an_example_of_a_known_class_holds_the_preprocessing_to_account(import_file, tmp_path):
    path, names = save(tmp_path, colour_model()), named(tmp_path, COLOURS)
    example = tmp_path / "sky.png"
    example.write_bytes(picture("blue"))
    arguments = (path, *names, "--image", "--image-example", example, "--expect")
    assert import_file(*arguments, "blue")[0] == 0
    status, _, err = import_file(*arguments, "blue", "--color", "BGR")
    assert (status, len(err.splitlines())) == (1, 1)
    assert "is 'red' with probability" in err
    assert "--preprocessing, --color" in err
    status, _, err = import_file(*arguments, "purple")
    assert (status, "'purple' is not a class" in err) == (1, True)
    status, _, err = import_file(*arguments[:-1])
    assert (status, "must be given together" in err) == (1, True)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (
            {
                "size": {"height": 224, "width": 224},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "resample": 2,
                "do_normalize": True,
                "rescale_factor": 1 / 255,
            },
            {
                "size": "224,224",
                "resize": "stretch",
                "resample": "bilinear",
                "scale": "0..1",
                "mean": "0.5,0.5,0.5",
            },
        ),
        (
            {
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
                "resample": 3,
            },
            {"size": "224,224", "resize": "256", "resample": "bicubic"},
        ),
        (
            {"size": 256, "crop_size": 224, "do_center_crop": True},
            {"size": "224,224", "resize": "256"},
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, {"size": "224,224", "resize": "256"}),
        (
            {"size": 224, "do_rescale": False, "do_normalize": False},
            {"scale": "1.0", "size": "224,224"},
        ),
        ({"size": 256, "do_flip_channel_order": True}, {"color": "BGR"}),
    ],
)
def test_a_preprocessor_config_stands_for_flags(config, wanted):
    found = image_flags(config)
    assert {key: found.get(key) for key in wanted} == wanted
    assert found["image"]


@pytest.mark.parametrize(
    ("processor", "config", "wanted"),
    [
        ("ConvNextFeatureExtractor", {"size": 224, "crop_pct": 0.875}, ("224,224", "256")),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 224}}, ("224,224", "256")),
        (
            "ConvNextImageProcessorFast",
            {"size": {"shortest_edge": 384}, "crop_pct": 0.875},
            ("384,384", "stretch"),
        ),
        (
            "PoolFormerImageProcessor",
            {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True},
            ("224,224", "248"),
        ),
        (
            "PoolFormerFeatureExtractor",
            {"size": 224, "crop_size": 224, "do_center_crop": True, "crop_pct": 0.95},
            ("224,224", "235"),
        ),
        ("LevitFeatureExtractor", {"size": 224, "do_center_crop": True}, ("224,224", "256")),
        (
            "DeiTFeatureExtractor",
            {"size": 256, "crop_size": 224, "do_center_crop": True},
            ("224,224", "256,256"),
        ),
        (
            "CLIPFeatureExtractor",
            {"size": 256, "crop_size": 224, "do_center_crop": True},
            ("224,224", "256"),
        ),
        (
            "PerceiverFeatureExtractor",
            {"size": 224, "crop_size": 256, "do_center_crop": True},
            ("224,224", "256"),
        ),
        ("BeitFeatureExtractor", {"size": 224, "do_center_crop": False}, ("224,224", "stretch")),
        ("ViTImageProcessor", {"size": 224}, ("224,224", "stretch")),
    ],
)
@pytest.mark.parametrize("member", ["image_processor_type", "feature_extractor_type"])
def test_each_image_processor_scales_and_cuts_out_in_its_own_way(member, processor, config, wanted):
    found = image_flags({member: processor, **config})
    assert (found["size"], found["resize"]) == wanted


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        ({"image_mean": 0.25, "image_std": 2}, "0.25", "2"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False}, None, None),
        (
            {
                "image_processor_type": "EfficientNetImageProcessor",
                "image_mean": [0.5, 0.25, 0.125],
                "image_std": [0.5, 0.25, 0.125],
            },
            "0.5,0.25,0.125",
            "0.25,0.0625,0.015625",  # it divides by image_std a second time
        ),
        (
            {
                "image_processor_type": "EfficientNetImageProcessor",
                "image_std": [0.5] * 3,
                "do_normalize": False,
                "include_top": True,
            },
            None,
            "0.5,0.5,0.5",
        ),
        (
            {
                "image_processor_type": "EfficientNetImageProcessor",
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "include_top": False,
                "rescale_factor": 1 / 127.5,
                "rescale_offset": True,
            },
            "1.5,1.5,1.5",  # pixels are from -1 to 1 before the mean is subtracted
            "0.5,0.5,0.5",
        ),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True}, "1.0", None),
    ],
)
def test_mean_and_std_are_those_that_the_image_processor_ends_with(config, mean, std):
    found = image_flags({"size": 224, **config})
    assert (found.get("mean"), found.get("std")) == (mean, std)


def test_a_range_of_pixels_that_versions_of_transformers_read_differently_is_refused():
    with pytest.raises(ImportRefused, match=r"rescale_factor 0\.5; expected 1/127\.5.*--scale"):
        image_flags({"rescale_offset": True, "rescale_factor": 0.5})


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_a_folder_that_says_it_does_not_choose_one_class_is_refused(import_file, tmp_path, problem):
    home = tmp_path / "export"
    home.mkdir()
    (home / "model.onnx").write_bytes(colour_model().SerializeToString())
    labels = {str(i): i + 1 for i in range(len(COLOURS))}  # such as the stars of a review
    config = {"id2label": labels, "problem_type": problem}
    (home / "config.json").write_text(json.dumps(config), encoding="utf-8")
    status, _, err = import_file(home)
    assert (status, f"problem_type is {problem}" in err) == (1, True)
    status, bundle, err = import_file(home, "--output-kind", "logits")
    assert status == 0, err
    assert bundle.class_names == [str(i + 1) for i in range(len(COLOURS))]


def test_a_folder_of_an_image_model_brings_its_preprocessing_and_its_names(import_file, tmp_path):
    home = tmp_path / "export"
    home.mkdir()
    (home / "model.onnx").write_bytes(colour_model().SerializeToString())
    labels = {str(i): name for i, name in enumerate(COLOURS)}
    (home / "config.json").write_text(json.dumps({"id2label": labels}), encoding="utf-8")
    config = {
        "size": {"shortest_edge": 10},
        "crop_size": {"height": 8, "width": 8},
        "do_center_crop": True,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    (home / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    status, bundle, err = import_file(home)
    assert status == 0, err
    spec = bundle.input
    assert bundle.class_names == COLOURS
    assert (spec.size, spec.resize, spec.resample) == ([8, 8], 10, "bicubic")
    assert (spec.mean, spec.std) == ([0.1, 0.2, 0.3], [0.5] * 3)
    status, _, err = import_file(tmp_path)
    assert (status, "is a folder without model.onnx" in err) == (1, True)


@pytest.mark.parametrize(
    "labels",
    [["red", "green", "blue"], {"0": "red", "2": "green", "3": "blue"}, "red", {"0": None}],
)
def test_names_that_cannot_be_put_in_order_are_shown(import_file, tmp_path, labels):
    """The file was said to name no classes."""
    home = tmp_path / "export"
    home.mkdir()
    (home / "model.onnx").write_bytes(colour_model().SerializeToString())
    (home / "config.json").write_text(json.dumps({"id2label": labels}), encoding="utf-8")
    status, _, err = import_file(home)
    assert status == 1
    assert f"id2label is {json.dumps(labels)}; expected an object from each index" in err
    status, bundle, err = import_file(home, *named(tmp_path, COLOURS))
    assert status == 0, err
    assert bundle.class_names == COLOURS


@pytest.mark.parametrize(
    ("side", "wanted"), [("left", "left"), ("right", "right"), ("middle", None), (None, None)]
)
def test_a_folder_says_at_which_side_a_text_is_cut_off(tmp_path, side, wanted):
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    stated = json.dumps({"truncation_side": side, "model_max_length": 512})
    (tmp_path / "tokenizer_config.json").write_text(stated, encoding="utf-8")
    folder = Folder(tmp_path, tmp_path / "model.onnx", None)
    spec = folder.tokenizer([GraphInput("input_ids", "int64", [None, None])])
    assert (spec.truncation_side, spec.max_length) == (wanted, 512)


def test_a_folder_whose_tokenizer_cannot_feed_the_graph_is_refused(import_file, tmp_path):
    home = tmp_path / "export"
    home.mkdir()
    model = colour_model()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "unused"))
    (home / "model.onnx").write_bytes(model.SerializeToString())
    (home / "tokenizer.json").write_text("{}", encoding="utf-8")
    status, _, err = import_file(home)
    assert (status, "the graph also has 'pixels'" in err) == (1, True)
