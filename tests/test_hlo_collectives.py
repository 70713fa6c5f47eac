"""hlo_collectives.py reads HLO; the training step sends what theory requires, and nothing else."""

import functools

import hlo_collectives
import jax
import numpy as np
import pytest
from hlo_collectives import Buffer, Collective
from synthetic import IDENTITY, SMALL_CNN, make_config, make_data, make_experiment

from imgclf_jax.devices import parallel
from imgclf_jax.training import exact_evaluation, multistep
from imgclf_jax.training.batches import Examples

DEVICES, BATCH = 8, 16
IMAGES, LABELS = make_data(40)
EXPLICIT = ("shard_map", "pmap")

needs_devices = pytest.mark.skipif(jax.local_device_count() < DEVICES, reason="needs eight devices")


# The text

SUM = "%sum (a: f32[], b: f32[]) -> f32[] {\n  ROOT %add = f32[] add(%a, %b)\n}\n"


def entry(*lines):
    """The collectives of a program whose entry computation has these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    return hlo_collectives.read(f"HloModule jit_f\n\n{SUM}\nENTRY %main.7_spmd (p: f32[4]) -> f32[4] {{\n{body}\n}}\n")


def test_one_array():
    line = "ROOT %all-reduce.1 = f32[8,4]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}, to_apply=%sum"
    assert entry(line) == [Collective("all-reduce", (Buffer("f32", (8, 4)),), depth=0)]
    assert entry(line)[0].bytes == 128


def test_arrays_that_were_combined():
    line = "%ar = (f32[10]{0}, /*index=1*/bf16[2,3]{1,0:T(8,128)(2,1)}, f32[], s32[]) all-reduce(%a, %b, %c, %d)"
    (found,) = entry(line)
    assert [buffer.shape for buffer in found.buffers] == [(10,), (2, 3), (), ()]
    assert found.bytes == 40 + 12 + 4 + 4


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        ("%r = u8[2,4]{1,0} reduce-scatter(%x), dimensions={0}, to_apply=%sum", "reduce-scatter", 8),
        ("%r = s32[16,1]{1,0} all-gather(%x), dimensions={0}", "all-gather", 64),
        ("%r = f32[4]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}", "collective-permute", 16),
        ("%r = (f32[1]{0}, f32[1]{0}) all-to-all(%x, %y), replica_groups={{0,1}}", "all-to-all", 8),
    ],
)
def test_every_kind(line, kind, size):
    (found,) = entry(line)
    assert (found.kind, found.bytes) == (kind, size)


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        ("%r = (f32[4]{0}, f32[2]{0}) all-reduce-start(%x, %y), to_apply=%sum", "all-reduce", 24),
        ("%r = (f32[4]{0}, f32[32]{0:S(1)}) all-gather-start(%x), dimensions={0}", "all-gather", 128),
        ("%r = ((f32[4]{0}, f32[1,3]{1,0}), (f32[8]{0}, f32[2,3]{1,0})) all-gather-start(%x, %y)", "all-gather", 56),
        ("%r = (f32[8]{0}, f32[1]{0}) reduce-scatter-start(%x), to_apply=%sum", "reduce-scatter", 4),
        ("%r = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x)", "collective-permute", 16),
    ],
)
def test_asynchronous_forms_count_once_and_by_their_result(line, kind, size):
    done = f"%done = f32[32]{{0}} {kind}-done(%r)"
    (found,) = entry(line, done)
    assert (found.kind, found.bytes) == (kind, size)


def test_names_and_metadata_are_no_collectives():
    assert not entry(
        "%all-reduce.2 = f32[4]{0} get-tuple-element(%all-reduce), index=0",
        '%f = f32[4]{0} fusion(%x), kind=kLoop, calls=%sum, metadata={op_name="psum all-reduce(x)"}',
    )


@pytest.mark.parametrize(
    ("dtype", "size"), [("pred", 3), ("s4", 2), ("u8", 3), ("bf16", 6), ("f8e4m3fn", 3), ("f64", 24), ("c128", 48)]
)
def test_sizes_of_dtypes(dtype, size):
    assert Buffer(dtype, (3,)).bytes == size


LOOPS = """HloModule jit_run
%inner_body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %ar = f32[4]{0} all-reduce(%x), to_apply=%sum
  %wrapped = f32[4]{0} call(%ar), to_apply=%called
  %fused = f32[4]{0} fusion(%wrapped), kind=kLoop, calls=%sum
}
%called (p: f32[4]) -> f32[4] {
  ROOT %ag = f32[4]{0} all-gather(%x), dimensions={0}
}
%condition (p: (s32[], f32[4])) -> pred[] {
  ROOT %less = pred[] compare(%a, %b), direction=LT
}
%outer_body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %c = f32[4]{0} copy(%x)
  %fused = f32[4]{0} fusion(%c), kind=kLoop, calls=%sum
  %w = (s32[], f32[4]{0}) while(%t), condition=%condition, body=%inner_body, config={"known_trip_count":{"n":"3"}}
  %start = f32[2]{0} all-reduce-start(%y), to_apply=%sum
  %done = f32[2]{0} all-reduce-done(%start)
  ROOT %tuple = (s32[], f32[4]{0}) tuple(%i, %v)
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]{0}) while(%t), condition=%condition, body=%outer_body, config={"known_trip_count":{"n":"9"}}
  ROOT %last = f32[] all-reduce(%z), to_apply=%sum
}
"""


def test_loops_around_a_collective():
    found = [(one.kind, one.depth, one.repeats) for one in hlo_collectives.read(LOOPS)]
    # The length of the outermost loop does not count: what is of interest is one turn.
    assert found == [("all-reduce", 2, 3), ("all-gather", 2, 3), ("all-reduce", 1, 1), ("all-reduce", 0, 1)]
    steps = hlo_collectives.in_loops(hlo_collectives.read(LOOPS))
    assert hlo_collectives.count(steps) == 7
    assert hlo_collectives.total_bytes(steps) == 3 * (16 + 16) + 8


def test_kernels_of_a_turn():
    assert hlo_collectives.kernels(LOOPS) == 2  # the fusion, and the inner loop as one
    assert hlo_collectives.kernels(SUM) == 0


# The step


def build(strategy, devices=DEVICES, norm="none", accumulate=1, data="replicated"):
    """A small experiment, its strategy, and the parameters' shapes."""
    config = make_config(
        SMALL_CNN,
        {
            "model.norm": norm,
            "train.batch_size": BATCH,
            "train.accumulate": accumulate,
            "eval.batch_size": BATCH,
            "parallel.strategy": strategy,
            "parallel.devices": devices,
            "parallel.data": data,
        },
    )
    placed = parallel.create(config)
    experiment = make_experiment(config, IMAGES, strategy=placed)
    return experiment, placed, jax.eval_shape(lambda: experiment.init(experiment.key))


@functools.cache
def step(*args, **options):
    """(collectives of the compiled training program, shapes of the parameters)."""
    experiment, _, state = build(*args, **options)
    meter = jax.eval_shape(multistep.empty_meter)
    lowered = experiment.compile_run_steps().lower(
        state=state,
        meter=meter,
        normalization=IDENTITY,
        data=experiment.data_stand_ins(),
        count=np.int32(1),
        key=experiment.key,
    )
    return hlo_collectives.read(lowered.compile().as_text()), state.params


def gradient_shapes(params):
    return sorted(leaf.shape for leaf in jax.tree.leaves(params))


def sizes(params):
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(params))


def shapes(found):
    return [buffer.shape for one in found for buffer in one.buffers]


SCALARS = [("f32", ()), ("s32", ())]  # sum of the losses, number of hits


@needs_devices
@pytest.mark.parametrize("strategy", ["jit", *EXPLICIT])
def test_one_device_sends_nothing(strategy):
    assert step(strategy, 1, norm="batch")[0] == []


@needs_devices
@pytest.mark.parametrize("strategy", EXPLICIT)
def test_gradients_and_two_scalars_are_summed_once_a_step(strategy):
    found, params = step(strategy)
    # So the forward pass sends nothing.
    assert {(one.kind, one.depth) for one in found} == {("all-reduce", 1)}
    assert sorted(shapes(found)) == sorted([*gradient_shapes(params), (), ()])
    assert hlo_collectives.total_bytes(found) == sizes(params) + 8
    assert sorted((b.dtype, b.shape) for one in found for b in one.buffers if not b.shape) == SCALARS


@needs_devices
@pytest.mark.parametrize("strategy", EXPLICIT)
def test_batch_normalisation_adds_two_means_forward_and_a_pair_backward(strategy):
    found, params = step(strategy, norm="batch")
    means = [shape for width in SMALL_CNN["model.widths"] for shape in [(width,)] * 4]
    assert {(one.kind, one.depth) for one in found} == {("all-reduce", 1)}
    assert sorted(shapes(found)) == sorted([*gradient_shapes(params), *means, (), ()])
    # Each of them needs the one before: the compiler can combine none of them, but the gradients.
    assert len(found) == 3 * len(SMALL_CNN["model.widths"]) + 2


@needs_devices
@pytest.mark.parametrize("strategy", EXPLICIT)
def test_accumulation_sums_the_gradients_once(strategy):
    (once, params), (parts, _) = step(strategy, norm="batch"), step(strategy, norm="batch", accumulate=2)
    inner = [one for one in parts if one.depth == 2]
    means = 4 * 4 * sum(SMALL_CNN["model.widths"])
    assert {one.repeats for one in inner} == {2}
    assert sum(one.bytes for one in inner) == means  # batch normalisation's, for each part
    outer = [one for one in parts if one.depth == 1]
    assert sorted(shapes(outer)) == sorted([*gradient_shapes(params), (), ()])
    assert hlo_collectives.total_bytes(parts) == hlo_collectives.total_bytes(once) + means


@needs_devices
def test_shards_of_the_data_set_send_the_batch_and_no_more():
    (whole, _), (cut, _) = step("shard_map"), step("shard_map", data="sharded")
    added = [one for one in cut if one.kind != "all-reduce"]
    assert [one for one in cut if one.kind == "all-reduce"] == whole
    assert [(one.kind, one.depth, one.buffers[0].dtype) for one in added] == [
        ("reduce-scatter", 1, "u8"),
        ("reduce-scatter", 1, "s32"),
    ]
    # A share of the batch on each device.
    batch = IMAGES[:BATCH].nbytes + LABELS[:BATCH].nbytes
    assert DEVICES * hlo_collectives.total_bytes(added) == batch


# What the compiler decides on, it may decide otherwise tomorrow: with "jit" there are bounds.


def bounds(params, parts=1):
    """Fewest and most bytes of gradients and scalars: see models/conv_pool.py for the kernels at four places."""
    kernels = sum(leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 4)
    four_places = 4 * 4**2 / 3**2
    return sizes(params) + 8, parts * (sizes(params) + 8 + 4 * (four_places - 1) * kernels)


@needs_devices
def test_the_compiler_sends_the_gradients_and_not_much_more():
    found, params = step("jit")
    least, most = bounds(params)
    assert {(one.kind, one.depth) for one in found} == {("all-reduce", 1)}
    assert least <= hlo_collectives.total_bytes(found) <= most


@needs_devices
def test_the_compiler_sends_no_more_than_eight_rows_of_batch_normalisations_means():
    (plain, _), (found, params) = step("jit"), step("jit", norm="batch")
    means = 4 * 4 * sum(SMALL_CNN["model.widths"])
    least, most = bounds(params)
    assert {(one.kind, one.depth) for one in found} == {("all-reduce", 1)}
    # The gradients of scale and bias come out of the same products.
    assert least <= hlo_collectives.total_bytes(found) <= most + 8 * means
    assert len(found) <= len(plain) + 3 * len(SMALL_CNN["model.widths"])


@needs_devices
def test_the_compiler_sums_gradients_at_most_once_for_each_part():
    found, params = step("jit", norm="batch", accumulate=2)
    least, most = bounds(params, parts=2)
    means = 4 * 4 * sum(SMALL_CNN["model.widths"])
    assert least <= hlo_collectives.total_bytes(found) <= most + 2 * 8 * means


@needs_devices
def test_the_compiler_sends_the_batch_of_a_sharded_data_set_once():
    (whole, _), (cut, _) = step("jit"), step("jit", data="sharded")
    added = hlo_collectives.total_bytes(cut) - hlo_collectives.total_bytes(whole)
    images, labels = IMAGES[:BATCH].nbytes, LABELS[:BATCH].nbytes
    assert [one.bytes for one in cut if one.buffers[0].dtype == "u8"] == [images]
    # The examples' numbers may be gathered on every device, once for images and once for labels.
    assert images + labels <= added <= images + labels + 2 * 4 * BATCH


@needs_devices
@pytest.mark.parametrize("strategy", ["jit", *EXPLICIT])
def test_evaluation_sends_four_sums(strategy):
    experiment, placed, state = build(strategy)
    lowered = experiment.compile_evaluate().lower(
        variables=state.eval_variables(),
        normalization=IDENTITY,
        data=Examples(*placed.put_examples((IMAGES, LABELS))),
        total=np.int32(len(IMAGES)),
        sums=exact_evaluation.nothing(),
    )
    found = hlo_collectives.read(lowered.compile().as_text())
    assert {one.kind for one in found} == {"all-reduce"}
    assert sorted((b.dtype, b.shape) for one in found for b in one.buffers) == [("f32", ()), *[("s32", ())] * 3]
    if strategy in EXPLICIT:
        assert {one.depth for one in found} == {0}  # once, after the last batch
