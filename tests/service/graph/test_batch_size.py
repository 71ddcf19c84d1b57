"""How large a batch is worth waiting for."""

from service.graph.warm_up import efficient_rows


def test_a_model_that_gains_from_large_batches_gets_them():
    assert efficient_rows({1: 4e-3, 8: 5e-3, 64: 9e-3}) == 64


def test_a_model_whose_cost_grows_with_its_rows_gets_batches_of_a_few_milliseconds():
    cost = {rows: rows * 1e-3 for rows in (1, 2, 4, 8, 16, 32, 64)}
    assert efficient_rows(cost) == 8
    assert efficient_rows({rows: 20 * seconds for rows, seconds in cost.items()}) == 1


def test_within_five_percent_the_smaller_batch_is_taken():
    assert efficient_rows({8: 8.3e-3, 16: 16e-3}) == 8
    assert efficient_rows({8: 8.5e-3, 16: 16e-3}) == 16


def test_a_cheap_model_is_never_made_to_run_small_batches():
    assert efficient_rows({1: 20e-6, 64: 64 * 20e-6}) == 64
