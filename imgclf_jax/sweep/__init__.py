"""Many runs from one file: named variants of a config, and what is needed to run all of them.

A sweep file defines `get_sweep()`::

    from imgclf_jax import sweep

    def get_sweep():
        return sweep.Sweep("cnn", sweep.grid({"optim.learning_rate": (0.01, 0.05, 0.1)}))

Variants are plain data, `Variant(name, {"section.field": value})`, and lists of them can be added, filtered and joined
with `product`. Importing this package imports neither JAX nor SciPy.
"""

from imgclf_jax.sweep.search import choice, linear, log, random
from imgclf_jax.sweep.spec import Sweep, Variant, grid, minus_one, product, variants, zipped

__all__ = [
    "Sweep",
    "Variant",
    "choice",
    "grid",
    "linear",
    "log",
    "minus_one",
    "product",
    "random",
    "variants",
    "zipped",
]
