"""Photos in folders, one a class."""

from typing import Any

from imgclf_jax.data.types import Dataset, Info, Progress


def describe(config_data: Any) -> Info:
    """To be written."""
    raise NotImplementedError


def load(config_data: Any, progress: Progress, stream: bool) -> Dataset:
    """To be written."""
    raise NotImplementedError
