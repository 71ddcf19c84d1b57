"""How large a batch is worth waiting for."""

from service.batch_size import efficient_rows


def test_a_model_that_gains_from_large_batches_gets_them():
    assert efficient_rows({1: 30e-6, 8: 31e-6, 64: 40e-6}) == 64


def test_a_model_whose_cost_grows_with_its_rows_gets_small_batches():
    assert efficient_rows({1: 1.10e-3, 2: 2.02e-3, 4: 4.0e-3, 64: 63e-3}) == 2


def test_within_five_percent_the_smaller_batch_is_taken():
    assert efficient_rows({1: 1.05, 2: 2.0}) == 1
    assert efficient_rows({1: 1.06, 2: 2.0}) == 2
