"""Activation functions of the library and their gradients."""

from ctypes import c_float
from typing import Literal

from imgclf_jax.onednn import primitives
from imgclf_jax.onednn.clib import create, one_thread
from imgclf_jax.onednn.primitives import GRADIENT, SOURCE, TARGET, WORKING, Array, Run

Kind = Literal["forward", "images"]
ALGORITHMS = {"gelu": 0x31, "silu": 0x2C}


def prepare(kind: Kind, function: str, size: int, dtype: str) -> Run:
    """Prepares an elementwise function, or its gradient.

    Args:
        kind: "forward": x -> y; "images": (gradient of y, x) -> gradient of x.
        function: one of `ALGORITHMS`.
        size: number of values.
        dtype: of all arrays.

    Returns:
        A function of the addresses of operands and results.
    """
    layout, engine = primitives.strided((size,), (1,), dtype), primitives.engine()
    algorithm, numbers = ALGORITHMS[function], (c_float(1), c_float(0))
    attributes = primitives.attributes()
    with one_thread():
        description = create(
            "dnnl_eltwise_forward_primitive_desc_create",
            *(engine, primitives.TRAINING, algorithm, layout, layout, *numbers, attributes),
        )
        if kind == "images":
            arguments = engine, algorithm, layout, layout, layout, *numbers, description, attributes
            description = create("dnnl_eltwise_backward_primitive_desc_create", *arguments)
    arrays = {SOURCE: Array(layout, 0), TARGET: Array(layout, 1)}
    if kind == "images":
        arrays = {SOURCE: Array(layout, 1), TARGET + GRADIENT: Array(layout, 0), SOURCE + GRADIENT: Array(layout, 2)}
    arrays[WORKING] = Array(primitives.asked(description, primitives.SCRATCHPAD))
    return primitives.runner([(primitives.primitive(description), arrays)], len(arrays) - 1)
