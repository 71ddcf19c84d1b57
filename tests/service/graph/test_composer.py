"""Graphs are composed in another process, which a start shares and which costs itself alone."""

import errno
import os
import signal

import onnx
import pytest

from service.graph import composer
from service.graph.composer import Composer, compose_file
from service.graph.foreign import UnsupportedGraph
from tests.support.small_models import linear_model


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(linear_model(), path)
    return path


@pytest.fixture
def shared(monkeypatch):
    """The shared process, and how many others were started."""
    composer.start_early()
    others = []

    class Counted(Composer):
        def __init__(self):
            others.append(self)
            super().__init__()

    monkeypatch.setattr(composer, "Composer", Counted)
    yield others
    composer.end_shared()


def composed(path):
    return compose_file(path, output="logits", kind="logits", temperature=1.0)


def test_the_loads_of_a_start_share_a_process_whatever_they_find(file, shared, tmp_path):
    first = composed(file)
    assert onnx.load_from_string(first).graph.output
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(UnsupportedGraph, match=r"broken\.onnx"):
        composed(broken)
    assert composed(file) == first
    assert shared == []
    composer.end_shared()
    assert composed(file) == first
    assert len(shared) == 1


def test_a_load_goes_on_in_a_process_of_its_own_when_the_shared_one_has_ended(file, shared):
    first = composed(file)
    os.kill(composer._shared._composer._process.pid, signal.SIGKILL)
    assert [composed(file) for _ in range(2)] == [first, first]
    assert len(shared) == 2


def test_a_load_does_not_wait_for_another_that_takes_long(file, shared, monkeypatch):
    monkeypatch.setattr(composer, "SHARED_SECONDS", 0)
    with composer._shared._turn:
        assert composed(file)
    assert len(shared) == 1


def test_where_no_process_can_be_started_early_a_load_starts_its_own(file, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(composer.sys, "executable", "/nowhere/python")
        composer.start_early()
    assert composed(file)


def test_a_file_that_takes_too_long_is_refused_and_named(file, monkeypatch):
    monkeypatch.setattr(composer, "COMPOSE_SECONDS", 0)
    with pytest.raises(UnsupportedGraph, match=r"model\.onnx: took over 0 s to read"):
        composed(file)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_a_start_for_which_no_process_can_be_started_leaves_it_to_the_loads(
    file, monkeypatch, number
):
    def none_left(*_arguments, **_more):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(composer.subprocess, "Popen", none_left)
    composer.start_early()
    with pytest.raises(UnsupportedGraph, match=r"no process can be started .* raise its limit"):
        composed(file)
