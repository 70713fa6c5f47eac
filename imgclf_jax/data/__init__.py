"""Loads data sets as arrays. No other package uses TFDS, image formats or the network."""

from imgclf_jax.data.loading import SOURCES, describe, describe_split, load, load_split
from imgclf_jax.data.types import Dataset, Info, Progress, Split

__all__ = ["SOURCES", "Dataset", "Info", "Progress", "Split", "describe", "describe_split", "load", "load_split"]
