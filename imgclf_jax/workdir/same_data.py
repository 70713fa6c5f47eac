"""Whether two runs used the same data, as far as their records say."""

from typing import Any

# The recorded facts about a data set that do not depend on whether it is streamed.
COMPARABLE = ("class_names", "image_shape", "counts")


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records describe the same data set.

    Args:
        one: the recorded facts; see `imgclf_jax.data.types.Dataset.facts`. They may be incomplete.
        other: the facts to compare with; they have a fingerprint.
    """
    old, new = one.get("fingerprint", other["fingerprint"]), other["fingerprint"]
    if old == new:
        return True
    # If only one of the two is streamed, their fingerprints differ in any case, and nothing more can be compared.
    return _kind(old) != _kind(new) and all(one.get(name) == other.get(name) for name in COMPARABLE)


def _kind(fingerprint):
    return fingerprint.rpartition(":")[0]
