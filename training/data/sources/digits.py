"""scikit-learn's handwritten digits: 1,797 rows of 8 × 8 grey values 0 … 16."""

import numpy as np

from training.data.dataset import Dataset, Split, check_labels
from training.data.sources.digest import arrays_digest
from training.data.splits import SPLIT_SEED, stratified

TEST_PER_CLASS = 40
VAL_PER_CLASS = 30


def load(spec: str) -> Dataset:
    """Load the digits, with a fixed test split of 40 rows per class (scikit-learn defines none)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    names = tuple(str(digit) for digit in range(10))
    whole = Split(bunch.data.astype(np.float32), check_labels(bunch.target, names, where="digits"))
    train, test = stratified(whole.labels, per_class=TEST_PER_CLASS, seed=SPLIT_SEED)
    return Dataset(
        spec=spec,
        kind="tensor",
        class_names=names,
        train=whole.take(train),
        test=whole.take(test),
        picture=(8, 8),
        val_per_class=VAL_PER_CLASS,
        origin={"name": "scikit-learn digits", "sha256": arrays_digest(bunch.data, bunch.target)},
    )
