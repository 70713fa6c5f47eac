"""Correction for several comparisons in one table."""

import numpy as np
import numpy.typing as npt


def holm(p: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Adjusts p values for the number of tests (Holm, 1979, "A simple sequentially rejective multiple test procedure").

    Comparing the adjusted values with 0.05 keeps the probability of any false positive in a family at most 5 %, however
    the tests depend on each other. Here they do depend: all share the baseline.

    Args:
        p: [..., tests]; each row is one family. NaN marks a test that could not be made and is not counted.

    Returns:
        [..., tests]: the adjusted values, at most 1; NaN where `p` is NaN.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, axis=-1)  # NaN comes last
    count = np.isfinite(p).sum(axis=-1, keepdims=True)
    factors = np.maximum(count - np.arange(p.shape[-1]), 1)
    adjusted = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    result = np.empty_like(p)
    np.put_along_axis(result, order, np.minimum(adjusted, 1), axis=-1)
    return result
