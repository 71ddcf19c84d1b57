"""Small real data that the tests of training share."""

import json

import numpy as np
import pytest
import torch

from tests.support.torch_exports import read_operators_once
from training.commands.cli import main

torch.set_num_threads(1)
read_operators_once()

CLASSES = 12
FEATURES = 6


def tail_counts():
    """Twelve classes, the last three with two rows each."""
    return [60, 40, 30, 20, 12, 8, 6, 4, 3, 2, 2, 2]


@pytest.fixture(scope="session")
def own_npz(tmp_path_factory):
    """A user's own arrays: a dozen classes around points of a plane, features on wild scales, no
    validation split.
    """
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(CLASSES, FEATURES)) * 2.5
    scales = 10.0 ** np.arange(FEATURES) - 3

    def rows(counts):
        labels = np.repeat(np.arange(CLASSES), counts)
        return ((centres[labels] + rng.normal(size=(len(labels), FEATURES))) * scales), labels

    x_train, y_train = rows(tail_counts())
    x_test, y_test = rows([10] * CLASSES)
    path = tmp_path_factory.mktemp("npz") / "own.npz"
    names = [f"kind {index}" for index in range(CLASSES)]
    np.savez(
        path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test, class_names=names
    )
    return path


@pytest.fixture
def command(capsys):
    """Run the command; returns (exit code, decoded stdout or None, stderr)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return (
            code,
            json.loads(captured.out) if captured.out.startswith("{") else None,
            captured.err,
        )

    return run
