"""The data of the digits example: scikit-learn's 1,797 handwritten digits of 8 by 8 pixels, split once for all.

The split is a fixed permutation from SHA-256, so that it depends on no library's random numbers. Pixels are stored as
they are, uint8 from 0 to 16; the trainers scale them by 1/16. Needs scikit-learn only to make the files: they are
shipped in `examples/digits/data/`.

    python -m node.worker.digits examples/digits/data
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from crdtchain.errors import UsageError

TRAIN_COUNT = 1437
"""Rows for training: 80 %; the other 360 are the test rows."""

FILES = ("digits_train_x.npy", "digits_train_y.npy", "digits_test_x.npy", "digits_test_y.npy")


def compute_order(count: int) -> list[int]:
    """A fixed permutation of the numbers below `count`: sorted by the digest of each."""
    return sorted(range(count), key=lambda i: hashlib.sha256(b"crdtchain digits %d" % i).digest())


def make_digits(folder: Path) -> None:
    """Write the four files: features uint8[n,64] in 0 … 16, labels uint8[n] in 0 … 9.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise UsageError("scikit-learn makes these files: install it, or use those in examples/digits/data") from error
    pixels, labels = load_digits(return_X_y=True)
    order = compute_order(len(labels))
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", order[:TRAIN_COUNT]), ("test", order[TRAIN_COUNT:])):
        np.save(folder / f"digits_{name}_x.npy", np.ascontiguousarray(pixels[rows], dtype=np.uint8))
        np.save(folder / f"digits_{name}_y.npy", np.ascontiguousarray(labels[rows], dtype=np.uint8))


if __name__ == "__main__":
    make_digits(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/digits/data"))
