"""`--cache`: images decoded once, into a file that later runs map into memory."""

import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import data_files as files
from training.data import image_cache, pixels
from training.data.image_cache import cached_pixels
from training.data.sources import load as sources
from training.faults import BadData, RunFailed, WrongUse
from training.loop.processes import Processes
from training.loop.train import Keeping
from training.run.prepare import prepare
from training.run.recipe import Recipe
from training.run.run import fit_network

RECIPE = Recipe(data="", network="cnn", steps=5, batch=8, augment="crop-flip", pad=2)


@pytest.fixture
def folder(tmp_path):
    return files.write_class_folders(tmp_path / "pictures", (24, 12, 6))


@pytest.fixture
def recipe(folder):
    return replace(RECIPE, data=f"images:{folder}")


def images_of(recipe):
    return sources.load(recipe.data, seed=0).train.inputs


def test_the_pixels_are_those_of_the_images_and_later_runs_decode_nothing(
    recipe, tmp_path, monkeypatch
):
    images = images_of(recipe)
    found, faults = cached_pixels(images, tmp_path / "cache")
    np.testing.assert_array_equal(found, np.asarray(images))
    assert faults == {}
    monkeypatch.setattr(pixels, "decode", None)
    again, _ = cached_pixels(images, tmp_path / "cache")
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(again, found)


def test_an_image_that_has_changed_is_decoded_again(recipe, folder, tmp_path):
    before, _ = cached_pixels(images_of(recipe), tmp_path / "cache")
    changed = folder / "ant" / "000.jpg"
    changed.write_bytes((folder / "bee" / "001.jpg").read_bytes())
    os.utime(changed, ns=(1, 1))
    after, _ = cached_pixels(images_of(recipe), tmp_path / "cache")
    np.testing.assert_array_equal(after, np.asarray(images_of(recipe)))
    assert not np.array_equal(before, after)


def test_images_of_another_size_have_a_file_of_their_own(recipe, tmp_path):
    images = images_of(recipe)
    small = replace(images, spec=replace(images.spec, size=(8, 8), resize="stretch"))
    assert cached_pixels(images, tmp_path)[0].shape[1:] != (8, 8, 3)
    assert cached_pixels(small, tmp_path)[0].shape[1:] == (8, 8, 3)


def test_a_run_on_cached_images_learns_what_one_on_images_in_memory_learns(recipe, tmp_path):
    learnt = []
    for read in ({"in_memory": True}, {"cache": tmp_path / "cache"}):
        ready = prepare(recipe, **read)
        network = fit_network(
            recipe, ready, keeping=Keeping(quiet=True), processes=Processes(torch.device("cpu"))
        )
        learnt.append(network.state_dict())
    for name, weights in learnt[0].items():
        assert torch.equal(weights, learnt[1][name]), name


def test_broken_images_are_named_every_time_and_can_be_left_out(folder, tmp_path):
    (folder / "ant" / "003.jpg").write_bytes(b"not an image")
    recipe = replace(RECIPE, data=f"images:{folder}")
    for _ in range(2):
        with pytest.raises(BadData, match=r"003\.jpg"):
            prepare(recipe, cache=tmp_path / "cache")
    for _ in range(2):
        data = prepare(replace(recipe, skip_broken=True), cache=tmp_path / "cache").data
        kept = sum(len(split) for split in (data.train, data.val, data.test) if split)
        assert kept == 24 + 12 + 6 - 1


def test_several_processes_make_the_file_once(recipe, tmp_path, monkeypatch):
    images, decoded, decode = images_of(recipe), [], pixels.decode

    def counted(path, spec):
        decoded.append(path)
        return decode(path, spec)

    monkeypatch.setattr(pixels, "decode", counted)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: cached_pixels(images, tmp_path)[0], range(4)))
    assert len(decoded) == len(images)
    assert all(np.array_equal(one, found[0]) for one in found)


def test_a_damaged_file_is_named(recipe, tmp_path):
    images = images_of(recipe)
    cached_pixels(images, tmp_path)
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RunFailed, match=rf"{path.name} is damaged; remove it"):
        cached_pixels(images, tmp_path)


def test_a_disk_without_room_is_refused_before_anything_is_decoded(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        image_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})
    )
    with pytest.raises(WrongUse, match=r"34 images take .* GiB once decoded, and .* are free"):
        cached_pixels(images_of(recipe), tmp_path)


def test_a_file_that_cannot_be_written_whole_is_not_left_behind(recipe, tmp_path):
    cache = tmp_path / "cache"
    command = (
        sys.executable, "-m", "training", "fit", "--name", "a", "--data", recipe.data, "--cache",
        str(cache), "--models", str(tmp_path / "models"), "--runs", str(tmp_path / "runs"),
    )  # fmt: skip
    limit = (40_000, 40_000)
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert done.returncode == 1
    assert f"training: --cache {cache}: " in done.stderr
    assert "cannot be used: File too large; make room" in done.stderr
    assert sorted(path.suffix for path in cache.iterdir()) == [".lock"]


@pytest.mark.parametrize(
    ("change", "read", "message"),
    [
        ({"data": "digits", "augment": "none"}, {}, "digits holds no image files"),
        ({}, {"in_memory": True}, "keeps the images in a file, and --in-memory does not; give one"),
        ({"augment": "resized-crop-flip"}, {}, "so they cannot be cached"),
    ],
)
def test_images_that_cannot_be_cached_are_refused(recipe, tmp_path, change, read, message):
    with pytest.raises(WrongUse, match=message):
        prepare(replace(recipe, **change), cache=tmp_path / "cache", **read)
