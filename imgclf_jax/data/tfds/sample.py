"""The sample of CIFAR-10 that comes with the package: real images, but too few for meaningful results."""

from pathlib import Path

from imgclf_jax.data.tfds import catalog
from imgclf_jax.errors import UserError

FOLDER = Path(__file__).parent / "sample"
NAME = f"{catalog.SAMPLED} (bundled sample)"


def full_lengths() -> dict[str, tuple[int, ...]]:
    """Returns the shard lengths of the full set, one shard per split. Split expressions are resolved on them."""
    return {name: (size,) for name, size in catalog.KNOWN[catalog.SAMPLED].sizes.items()}


def check_name(base: str) -> None:
    """Checks that there is a sample of the set.

    Raises:
        UserError: there is none.
    """
    if base != catalog.SAMPLED:
        raise UserError(f"data.name={base!r}: the only bundled sample is that of {catalog.SAMPLED}")


def notice(reason: str, root: Path) -> str:
    """Returns the conspicuous warning that the sample replaces the real data set."""
    known = catalog.KNOWN[catalog.SAMPLED]
    rule = "!" * 100
    return "\n".join(
        [
            rule,
            "NOT THE REAL CIFAR-10: this run uses the sample bundled with the package (4,000 training and 1,000 test",
            "images instead of 50,000 and 10,000). Accuracies are far lower and not comparable to published ones.",
            f"Why: {reason}",
            "Split boundaries are scaled in proportion: train[:45000] of CIFAR-10 is train[:3600] of the sample.",
            "To get the real data set, use one of these:",
            f"  - run with a network connection: it is downloaded (162 MiB) to {root}",
            "  - --config.data.archive=PATH/cifar-10-binary.tar.gz, if you have the archive",
            "  - --config.data.url=ADDRESS of a mirror of that archive",
            f"  - --config.data.dir=DIR or TFDS_DATA_DIR=DIR, if DIR/{catalog.SAMPLED}/{known.version} is prepared",
            "To make this an error instead: --config.data.allow_sample=False",
            rule,
        ]
    )
