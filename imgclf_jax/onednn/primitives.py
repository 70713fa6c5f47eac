"""What the convolutions and poolings of the library have in common: memory, and steps that run on the current thread.

The functions and constants are those of oneDNN's C interface (https://uxlfoundation.github.io/oneDNN).
"""

import ctypes
import dataclasses
import functools
from collections.abc import Callable, Sequence
from ctypes import c_void_p

from imgclf_jax.onednn import clib
from imgclf_jax.onednn.clib import call, create, one_thread, sizes

CPU, IN_ORDER = 1, 1  # of an engine; of a stream
ALIGNMENT = 64  # of memory, in bytes
DTYPES = {"float32": 3, "bfloat16": 2, "uint8": 6}
TRAINING, USER = 64, 1  # forward propagation; who keeps the working memory
SCRATCHPAD = 136  # what a primitive is asked for
SOURCE, TARGET, GRADIENT, WORKING = 1, 17, 128, 80  # arguments; + GRADIENT: the gradient of it

Run = Callable[..., None]


@dataclasses.dataclass(frozen=True, eq=False)
class Array:
    """Memory of a primitive.

    Attributes:
        description: its layout.
        operand: its place among the operands and results of the whole, which are given as addresses; or `None`.
        of: the array whose memory this is, in another layout; or `None`. Memory that is not given is zero at first.
    """

    description: c_void_p
    operand: int | None = None
    of: "Array | None" = None


Step = tuple[c_void_p, dict[int, Array]]  # a primitive, and its arrays by their places


class _Argument(ctypes.Structure):
    _fields_ = (("place", ctypes.c_int), ("memory", c_void_p))


@functools.cache
def engine() -> c_void_p:
    """The processor."""
    return create("dnnl_engine_create", CPU, ctypes.c_size_t(0))


def runner(steps: Sequence[Step], operands: int) -> Run:
    """Returns a function of the addresses of operands and results that takes the steps. Threads may call it at once.

    Args:
        steps: in their order; arrays without an operand belong to the thread.
        operands: how many addresses there are.
    """
    unused: list[Run] = []

    def run(*addresses: int) -> None:
        clib.quick().omp_set_num_threads(1)
        one = unused.pop() if unused else _bind(steps, operands)
        one(*addresses)
        unused.append(one)

    return run


def _bind(steps, operands):
    """The function for one thread, with memory of its own."""
    stream = create("dnnl_stream_create", engine(), IN_ORDER)
    buffers, memories, bound = {}, {}, []
    for primitive, arrays in steps:
        for array in arrays.values():
            own = array.of or array
            if own.operand is None and own not in buffers:
                size = clib.load().dnnl_memory_desc_get_size(own.description)
                buffers[own] = ctypes.create_string_buffer(size + ALIGNMENT)
            if array not in memories:
                address = -(-ctypes.addressof(buffers[own]) // ALIGNMENT) * ALIGNMENT if own in buffers else 0
                memories[array] = create("dnnl_memory_create", array.description, engine(), c_void_p(address))
        arguments = (_Argument * len(arrays))(*[_Argument(place, memories[array]) for place, array in arrays.items()])
        bound.append((primitive, len(arrays), arguments))
    given = [[m for array, m in memories.items() if array.operand == place] for place in range(operands)]
    move, execute = clib.quick().dnnl_memory_set_data_handle, clib.load().dnnl_primitive_execute

    def run(*addresses, buffers=buffers):  # which live as long as this function
        for places, address in zip(given, addresses, strict=True):
            for memory in places:
                move(memory, address)
        for primitive, count, arguments in bound:
            if status := execute(primitive, stream, count, arguments):
                raise clib.Error(f"oneDNN: dnnl_primitive_execute returned {status}")

    return run


def primitive(description: c_void_p) -> c_void_p:
    """Makes the primitive of a description."""
    with one_thread():
        return create("dnnl_primitive_create", description)


def attributes() -> c_void_p:
    """Attributes of a description: working memory is given to the primitive, and not shared among all of them."""
    made = create("dnnl_primitive_attr_create")
    call("dnnl_primitive_attr_set_scratchpad_mode", made, USER)
    return made


def asked(description: c_void_p, what: int) -> c_void_p:
    """Returns the layout of an array of a primitive."""
    return c_void_p(clib.load().dnnl_primitive_desc_query_md(description, what, 0))


def images(shape: Sequence[int], dtype: str) -> c_void_p:
    """The layout of images [B, H, W, C]. The library names axes in the order B, C, H, W, however they lie in memory."""
    batch, height, width, channels = shape
    return strided((batch, channels, height, width), (height * width * channels, 1, width * channels, channels), dtype)


def reorder(before: c_void_p, after: c_void_p) -> c_void_p:
    """Makes the primitive that copies an array to another layout."""
    with one_thread():
        return primitive(create("dnnl_reorder_primitive_desc_create", before, engine(), after, engine(), None))


def part(whole: c_void_p, dims: Sequence[int], offsets: Sequence[int]) -> c_void_p:
    """The layout of a part of an array in its memory."""
    return create("dnnl_memory_desc_create_submemory", whole, sizes(dims), sizes(offsets))


def strided(dims: Sequence[int], strides: Sequence[int], dtype: str) -> c_void_p:
    """A layout with these distances between neighbors of each axis, in values."""
    name = "dnnl_memory_desc_create_with_strides"
    return create(name, len(dims), sizes(dims), DTYPES[dtype], sizes(strides))
