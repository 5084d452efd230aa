import numpy as np
import pytest

from unclip_jax.sampling.batching import batched, batches_of


def test_batches_have_one_size_and_the_last_is_filled_up():
    assert [(first, rows.tolist()) for first, rows in batches_of(5, 2)] == [(0, [0, 1]), (2, [2, 3]), (4, [4, 4])]
    assert [(first, rows.tolist()) for first, rows in batches_of(3, 4)] == [(0, [0, 1, 2, 2])]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_rows_come_back_once_and_in_order(batch_size):
    sizes = set()

    def call(rows):
        sizes.add(len(rows))
        return 10 * rows

    np.testing.assert_array_equal(batched(call, 5, batch_size), [0, 10, 20, 30, 40])
    assert sizes == {min(batch_size, 5)}


@pytest.mark.parametrize("only", range(5))
def test_one_row_alone_is_made_in_its_own_batch(only):
    made = []

    def call(rows):
        made.append(rows.tolist())
        return 10 * rows

    np.testing.assert_array_equal(batched(call, 5, 2, only), [10 * only])
    assert made == [[[0, 1], [2, 3], [4, 4]][only // 2]]
