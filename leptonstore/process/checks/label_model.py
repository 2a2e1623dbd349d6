"""Quick models that guess the label of a row from rows of other folds: out-of-fold probabilities, of which cleanlab makes a judgement.

Images, texts and what is mixed are guessed by multinomial logistic regression, numbers alone by boosted trees over histograms (both
scikit-learn's). The same features give the same probabilities: each fit runs in one thread, folds side by side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore import limits
from leptonstore.process.columns import null_mask

Floats = NDArray[np.float32]
STEPS_MAX = 100  # of the regression; it has done its best long before
STRICTNESS = 1.0  # scikit-learn's C, for features between 0 and 1
STRICTNESS_TEXT = 10.0  # rows of texts have the length 1, so their weights are larger


@dataclass(frozen=True)
class Features:
    """Of n rows. dense: images and numbers; words: of texts, a sparse matrix or None. numbers_only: no image is among `dense`."""

    dense: Floats
    words: Any
    numbers_only: bool

    def of(self, rows: NDArray[np.int64]) -> Features:
        """Of some rows."""
        if len(rows) == len(self.dense):
            return self
        return Features(self.dense[rows], None if self.words is None else self.words[rows], self.numbers_only)

    @property
    def matrix(self) -> Any:
        """What the regression is given."""
        if self.words is None:
            return self.dense
        from scipy.sparse import csr_matrix, hstack

        return hstack([self.words, csr_matrix(self.dense)], "csr") if self.dense.shape[1] else self.words


def gathered(
    images: Sequence[pa.Array], texts: Sequence[pa.Array], numbers: Sequence[pa.Array]
) -> tuple[Features, NDArray[np.bool_]]:
    """Features as `label_features` makes them -> those of all rows, and which rows have all their images and texts."""
    count = len(next(iter([*images, *texts, *numbers])))
    known = np.ones(count, np.bool_)
    parts = []
    for array in [*images, *texts]:
        known &= ~null_mask(array)
    for array in images:
        wide = array.type.list_size
        values = array.values.slice(array.offset * wide, count * wide).to_numpy(zero_copy_only=False)
        parts.append(values.reshape(count, wide).astype(np.float32) / np.float32(255))
    parts += [_standard(array.to_numpy(zero_copy_only=False))[:, None] for array in numbers]
    dense = np.concatenate(parts, axis=1) if parts else np.zeros((count, 0), np.float32)
    return Features(dense, _words(texts) if texts else None, not images and not texts), known


def _standard(values: NDArray[np.float64]) -> Floats:
    """With mean 0 and standard deviation 1; what is missing or not finite at the mean."""
    finite = np.isfinite(values)
    known = values[finite]
    centre, spread = (float(known.mean()), float(known.std())) if len(known) else (0.0, 1.0)
    out = np.zeros(len(values), np.float32)
    if np.isfinite(spread):
        out[finite] = (known - centre) / (spread or 1.0)
    return out


def _words(texts: Sequence[pa.Array]) -> Any:
    """tf-idf of words that stand in two rows or more, each row of length 1."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import TfidfTransformer

    parts = []
    for array in texts:
        filled = array.fill_null(pa.scalar([], array.type))
        lengths = filled.value_lengths().to_numpy(zero_copy_only=False)
        _, place, count = np.unique(filled.flatten().to_numpy(), return_inverse=True, return_counts=True)
        kept = np.cumsum(count > 1) - 1
        often = (count > 1)[place]
        row = np.repeat(np.arange(len(lengths)), lengths)[often]
        ones = np.ones(int(often.sum()), np.float32)
        parts.append(csr_matrix((ones, (row, kept[place[often]])), (len(lengths), max(int((count > 1).sum()), 1))))
    return TfidfTransformer().fit_transform(hstack(parts, "csr"))


def out_of_fold(
    features: Features, labels: NDArray[np.int64], keys: NDArray[np.uint64], folds: int, classes: int
) -> NDArray[np.float64]:
    """(n, classes): for each row what a model says that has not seen its fold.

    labels: 0 to classes - 1. keys: a number for each row, evenly spread, which says its fold and who is taken for training where there are
    more than LABEL_TRAIN_ROWS_MAX rows.
    """
    from threadpoolctl import threadpool_limits

    fold = (keys % np.uint64(folds)).astype(np.int64)
    matrix = features.dense if features.numbers_only else features.matrix
    out = np.zeros((len(labels), classes))

    def guess(at: int) -> None:
        train, held = np.flatnonzero(fold != at), np.flatnonzero(fold == at)
        if len(train) > limits.LABEL_TRAIN_ROWS_MAX:
            chosen = np.argsort(keys[train], kind="stable")[: limits.LABEL_TRAIN_ROWS_MAX]
            train = np.sort(train[chosen])
        seen = np.unique(labels[train])
        if not len(held) or not len(seen):
            return
        if len(seen) == 1:
            out[held, seen[0]] = 1.0
            return
        model = _model(features)
        with threadpool_limits(1, "openmp"):  # which counts for the thread that asks, unlike BLAS's below
            model.fit(matrix[train], labels[train])
            out[held[:, None], model.classes_] = model.predict_proba(matrix[held])

    with (
        threadpool_limits(1),
        ThreadPoolExecutor(min(folds, os.cpu_count() or 1), thread_name_prefix="lepton-labels") as pool,
    ):
        list(pool.map(guess, range(folds)))
    return out


def _model(features: Features) -> Any:
    if features.numbers_only:
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(random_state=0, early_stopping=False)
    from sklearn.linear_model import LogisticRegression

    strict = STRICTNESS if features.words is None else STRICTNESS_TEXT
    return LogisticRegression(C=strict, max_iter=STEPS_MAX, tol=1e-3)
