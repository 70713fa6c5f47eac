"""What accelerators can compute at most, by the name that JAX gives them; from their makers' data sheets."""

from typing import NamedTuple

import jax


class Peaks(NamedTuple):
    """FLOP/s of one device, dense, in matrix products; `None` where the maker publishes no figure.

    Attributes:
        float32: outside of matrix units, or in several passes through them.
        tf32: inputs rounded to 10 bits of mantissa, sums in float32.
        bfloat16: inputs in bfloat16, sums in float32.
    """

    float32: float | None
    tf32: float | None
    bfloat16: float | None


# The longest prefix of `device_kind` counts. NVIDIA's sheets give Hopper's tensor cores «with sparsity»: half is dense.
PEAKS = {
    # NVIDIA A100 Tensor Core GPU data sheet (2021): both form factors, 40 and 80 GB.
    "NVIDIA A100": Peaks(19.5e12, 156e12, 312e12),
    # NVIDIA H100 Tensor Core GPU data sheet, columns SXM and PCIe.
    "NVIDIA H100": Peaks(67e12, 989e12 / 2, 1979e12 / 2),
    "NVIDIA H100 PCIe": Peaks(51e12, 756e12 / 2, 1513e12 / 2),
    # NVIDIA H200 Tensor Core GPU data sheet, column SXM.
    "NVIDIA H200": Peaks(67e12, 989e12 / 2, 1979e12 / 2),
    # https://cloud.google.com/tpu/docs/v4, «peak compute per chip».
    "TPU v4": Peaks(None, None, 275e12),
    # https://cloud.google.com/tpu/docs/v5e
    "TPU v5 lite": Peaks(None, None, 197e12),
    "TPU v5e": Peaks(None, None, 197e12),
    # https://cloud.google.com/tpu/docs/v5p
    "TPU v5": Peaks(None, None, 459e12),
    "TPU v5p": Peaks(None, None, 459e12),
}
# Other boards whose names begin alike.
DIFFERENT = ("TPU v4 lite", "NVIDIA H100 NVL", "NVIDIA H200 NVL")


def arithmetic(dtype: str, backend: str, precision: str | None = None) -> str:
    """The field of `Peaks` that matrix products of a dtype run in.

    Args:
        dtype: of the layers, "float32" or "bfloat16".
        backend: as `jax.default_backend()` says.
        precision: `jax.config.jax_default_matmul_precision`. By default, float32 is rounded to TF32 on GPUs that have
            it and to bfloat16 on TPUs (documentation of `jax.lax.Precision`).
    """
    if dtype != "float32":
        return dtype
    named = {"tensorfloat32": "tf32", "bfloat16": "bfloat16", "float32": "float32", "highest": "float32"}
    if precision in named:
        return named[precision]
    return {"gpu": "tf32", "tpu": "bfloat16"}.get(backend, "float32")


def peak(device_kind: str, kind: str) -> float | None:
    """FLOP/s of a device in the arithmetic `kind`, a field of `Peaks`; `None` where it is not known."""
    if device_kind.startswith(DIFFERENT):
        return None
    known = max((name for name in PEAKS if device_kind.startswith(name)), key=len, default=None)
    return getattr(PEAKS[known], kind, None) if known else None


def of_this_process(dtype: str) -> tuple[float | None, str]:
    """The peak of JAX's first device for layers of a dtype, and the arithmetic that it is of."""
    kind = arithmetic(dtype, jax.default_backend(), jax.config.values["jax_default_matmul_precision"])
    return peak(jax.devices()[0].device_kind, kind), kind
