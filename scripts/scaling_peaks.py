"""The peak FLOP/s of accelerators by JAX's names for them, from the makers' data sheets."""

from typing import NamedTuple

import jax


class Peaks(NamedTuple):
    """FLOP/s of one device in dense matrix products; `None` if the maker publishes no figure.

    Attributes:
        float32: without matrix units, or in several passes through them.
        tf32: with inputs rounded to 10 bits of mantissa and sums in float32.
        bfloat16: with inputs in bfloat16 and sums in float32.
    """

    float32: float | None
    tf32: float | None
    bfloat16: float | None


# The longest prefix of `device_kind` counts. NVIDIA's sheets give Hopper's rates "with sparsity"; dense is half.
PEAKS = {
    # NVIDIA A100 Tensor Core GPU data sheet (2021): both form factors, 40 and 80 GB.
    "NVIDIA A100": Peaks(19.5e12, 156e12, 312e12),
    # NVIDIA H100 Tensor Core GPU data sheet, columns SXM and PCIe.
    "NVIDIA H100": Peaks(67e12, 989e12 / 2, 1979e12 / 2),
    "NVIDIA H100 PCIe": Peaks(51e12, 756e12 / 2, 1513e12 / 2),
    # NVIDIA H200 Tensor Core GPU data sheet, column SXM.
    "NVIDIA H200": Peaks(67e12, 989e12 / 2, 1979e12 / 2),
    # https://cloud.google.com/tpu/docs/v4, "peak compute per chip".
    "TPU v4": Peaks(None, None, 275e12),
    # https://cloud.google.com/tpu/docs/v5e
    "TPU v5 lite": Peaks(None, None, 197e12),
    "TPU v5e": Peaks(None, None, 197e12),
    # https://cloud.google.com/tpu/docs/v5p
    "TPU v5": Peaks(None, None, 459e12),
    "TPU v5p": Peaks(None, None, 459e12),
}
# Other boards with the same prefixes.
DIFFERENT = ("TPU v4 lite", "NVIDIA H100 NVL", "NVIDIA H200 NVL")


def arithmetic(dtype: str, backend: str, precision: str | None = None) -> str:
    """Returns the field of `Peaks` that applies to matrix products of a dtype.

    Args:
        dtype: the dtype of the layers, "float32" or "bfloat16".
        backend: the result of `jax.default_backend()`.
        precision: `jax.config.jax_default_matmul_precision`. By default, float32 is rounded to TF32 on GPUs that
            have it and to bfloat16 on TPUs (documentation of `jax.lax.Precision`).
    """
    if dtype != "float32":
        return dtype
    named = {"tensorfloat32": "tf32", "bfloat16": "bfloat16", "float32": "float32", "highest": "float32"}
    if precision in named:
        return named[precision]
    return {"gpu": "tf32", "tpu": "bfloat16"}.get(backend, "float32")


def peak(device_kind: str, kind: str) -> float | None:
    """Returns the FLOP/s of a device in the arithmetic `kind`, a field of `Peaks`; `None` if unknown."""
    if device_kind.startswith(DIFFERENT):
        return None
    known = max((name for name in PEAKS if device_kind.startswith(name)), key=len, default=None)
    return getattr(PEAKS[known], kind, None) if known else None


def of_this_process(dtype: str) -> tuple[float | None, str]:
    """Returns the peak FLOP/s of JAX's first device for layers of a dtype, and the arithmetic it applies to."""
    kind = arithmetic(dtype, jax.default_backend(), jax.config.values["jax_default_matmul_precision"])
    return peak(jax.devices()[0].device_kind, kind), kind
