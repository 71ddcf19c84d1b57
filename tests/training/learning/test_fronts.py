"""The first module of a network for rows, in whatever precision the network is."""

import copy
import tracemalloc

import numpy as np
import pytest
import torch

from training.learning.fronts import Mixed, Standardise, edges
from training.learning.tfidf import TfIdf


def test_unix_times_keep_what_distinguishes_them_in_a_network_of_float32():
    times = (1_700_000_000 + np.arange(100.0))[:, None]
    front = Standardise.fitted(times).double().float()  # as after a run in fp64
    found = front(torch.from_numpy(times))
    assert found.dtype == torch.float32
    assert len(found.unique()) == 100
    assert float(found.std(unbiased=False)) == pytest.approx(1)


def test_float32_rows_are_standardised_in_float32_and_constants_only_centred():
    rows = np.array([[1, 7], [3, 7]], np.float32)
    front = Standardise.fitted(rows)
    assert front.mean.dtype == torch.float32
    assert front(torch.from_numpy(rows)).tolist() == [[-1, 0], [1, 0]]


def test_fitting_to_many_rows_needs_little_memory_beside_them():
    rows = np.random.default_rng(0).normal(3, 2, (100_000, 41)).astype(np.float32)
    rows[::7, 5] = np.nan
    tracemalloc.start()
    try:
        front = Mixed.fitted(rows, [0] * 41)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * rows.nbytes
    numbers = rows.astype(np.float64)
    assert front.mean.numpy() == pytest.approx(np.nanmean(numbers, axis=0), rel=1e-9)
    assert front.deviation.numpy() == pytest.approx(np.nanstd(numbers, axis=0), rel=1e-9)


def test_mixed_rows_are_numbers_gaps_and_one_output_a_value():
    rows = np.array([[1, 2, np.nan], [3, 1, 5.0], [np.nan, 0, 5.0]])
    front = Mixed.fitted(rows, [0, 2, 0])
    assert front.width == 2 + 2 + 2
    found = front(torch.from_numpy(rows)).tolist()
    assert found == [[-1, 0, 0, 1, 0, 1], [1, 0, 0, 0, 1, 0], [0, 0, 1, 0, 0, 0]]


def test_scaled_values_of_a_category_have_a_deviation_of_one_and_unseen_ones_are_zero():
    rows = np.array([[1.0, 3.0], [1, 0], [1, 0], [2, 0]])
    found = Mixed.fitted(rows, [2, 0], scaled=True)(torch.from_numpy(rows))
    assert found[:, 1:].std(dim=0, unbiased=False).tolist() == pytest.approx([1, 1])
    one = Mixed.fitted(rows, [3, 0], scaled=True)
    assert one(torch.tensor([[3.0, 0], [0, 0]], dtype=torch.float64))[:, 1:].tolist() == [
        [0, 0, 1],  # a value that does not vary in training keeps its 1
        [0, 0, 0],
    ]


def test_a_copy_moved_to_another_precision_gives_results_of_it():
    front = copy.deepcopy(Mixed.fitted(np.array([[0.0, 1], [2, 2]]), [0, 2])).double()
    assert front(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64


def test_tfidf_of_padded_numbers_equals_that_of_sparse_ones():
    weigher = TfIdf(np.array([1.0, 2.0, 3.0], np.float32))
    padded = torch.tensor([[1, 1, 3, 0], [0, 0, 0, 0], [2, 3, 3, 3]])
    numbers = np.array([1, 1, 3, 2, 3, 3, 3], np.int32)
    dense = weigher(padded)
    sparse = weigher.sparse(numbers, np.array([0, 3, 3, 7]))
    assert np.allclose(dense.numpy(), sparse.toarray(), atol=1e-6)
    first = np.array([1 + np.log(2), 0, 3])
    assert np.allclose(dense[0].numpy(), first / np.linalg.norm(first))
    assert dense.norm(dim=1).tolist() == pytest.approx([1, 0, 1])


def test_a_number_in_pieces_rises_in_each_interval_between_quantiles_and_is_bounded():
    rows = np.array([[0.0, 1], [1, 1], [3, 0], [np.nan, 0]])
    front = Mixed.fitted(rows, [0, 0], in_pieces=True)
    assert front.width == 2 + 1 + 2  # the second number has two values: a line says all of it
    found = front(torch.tensor([[-1e9, 0], [1e9, 0], [2, 0], [np.nan, 0]], dtype=torch.float64))
    means = np.array([2 / 3, 1 / 3])
    expected = [[0, 0] - means, [1, 1] - means, [1, 0.5] - means, [0, 0]]
    assert np.allclose(found[:, 3:], np.array(expected), atol=1e-6)
    assert edges(np.arange(1000.0)).tolist() == np.linspace(0, 999, 9).tolist()
