"""profile/: what operations compute and move, when they ran, and runs with --profile."""

import csv
import gzip
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.profiler import ProfileData
from runs import ROOT, TINY, bits, rows

from imgclf_jax.models import cost
from imgclf_jax.profile import recorder, table, trace
from imgclf_jax.profile.hlo import Program
from imgclf_jax.terminal.console import Console

pytest_plugins = ["run_fixtures"]

# What compilers for CPUs and GPUs write, without what does not matter here.
TEXT = (ROOT / "tests" / "step.hlo.txt").read_text()
PRODUCT = 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)  # of the convolution, whatever library does it


@pytest.mark.parametrize(
    ("name", "kind", "flops"),
    [
        ("forward", "convolution", PRODUCT),
        # The holes between the gradients of the strided outputs are not multiplied.
        ("backward", "convolution", 2 * (2 * 8 * 8 * 3) * (3 * 3 * 16) // 4),
        ("cudnn.1", "__cudnn$convForward", PRODUCT),
        ("cudnn.2", "__cudnn$convBackwardInput", PRODUCT),
        ("cudnn.3", "__cudnn$convBackwardFilter", PRODUCT),
        ("onednn", "__onednn$convolution", PRODUCT),
        ("onednn__onednn$convolution", "__onednn$convolution", PRODUCT),
        ("ours.1", "oneDNN_forward_float32", PRODUCT),
        ("gemm", "__cublas$gemm", 2 * 5 * 16 * 8 * 32),
        ("both", "fusion", 2 * 16 * 8 * 32),
        ("copy.1", "copy", 0),
        ("while.1", "while", 0),
    ],
)
def test_flops_of_products_in_any_form(name, kind, flops):
    one = Program(TEXT).operation(name)
    assert (one.kind, one.flops) == (kind, flops)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("forward", 4 * (2 * 8 * 8 * 3 + 3 * 3 * 3 * 16 + 2 * 4 * 4 * 16)),
        ("cudnn.3", 4 * (2 * 8 * 8 * 3 + 2 * 4 * 4 * 16 + 3 * 3 * 3 * 16)),  # without working memory
        ("both", 2 * (16 * 32 + 32 * 8) + (2 + 4) * 16 * 8),
        ("gathered", 2 * 64 * 32 * 32 * 3 + 4 * 64),  # the rows, not the data set; a parameter that is not used
        ("updated", 4 * 8 + 4 + 4 * 8),  # a line, in place
        ("copy.1", 2 * 16),
        ("while.1", 0),
    ],
)
def test_bytes_are_those_that_are_read_and_written(name, size):
    assert Program(TEXT).operation(name).bytes == size


def test_names_and_sources():
    program = Program(TEXT)
    assert program.module == "jit_run_steps"
    assert program.operation("forward").source == "jvp(Net)/conv1/conv_general_dilated"
    assert program.operation("both").source == "transpose(jvp(Net))/dense/dot_general"
    assert program.operation("unknown") is None


def test_the_flops_of_a_compiled_network_are_those_of_the_traced_one():
    def network(x, w, v):
        y = jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(y).reshape(len(x), -1) @ v

    shapes = [(4, 8, 8, 3), (3, 3, 3, 5), (4 * 4 * 5, 7)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(network).lower(*arguments).compile().as_text()
    program = Program(text)
    entry = text.partition("ENTRY")[2]
    names = re.findall(r"^  (?:ROOT )?%([\w.-]+) = ", entry, re.MULTILINE)
    found = sum(program.operation(name).flops for name in names)
    assert found == cost.matmul_flops(jax.make_jaxpr(network)(*arguments)) > 0


# Traces


def test_spans_that_overlap_share_their_time():
    assert trace.share([(0, 10), (2, 6), (4, 6), (20, 21), (30, 30)]) == pytest.approx([23 / 3, 5 / 3, 2 / 3, 1, 0])
    draws = np.random.default_rng(0).integers(0, 100, (50, 2))
    spans = [(min(pair), max(pair)) for pair in draws.tolist()]
    covered = {moment for start, end in spans for moment in range(start, end)}
    assert sum(trace.share(spans)) == pytest.approx(len(covered))


KINDS = {int: "int64_value", str: "str_value"}


def xspace(planes, path):
    """Writes a trace of {plane: {line: [(name, start, duration, stats)]}}, in nanoseconds."""
    parts, names = [], {}

    def number(name):
        return names.setdefault(name, len(names) + 1)

    for plane, lines in planes.items():
        names.clear()
        text = ""
        for line, events in lines.items():
            shown = ""
            for name, start, duration, stats in events:
                values = "".join(
                    f"stats {{ metadata_id: {number(key)} {KINDS[type(value)]}: {json.dumps(value)} }}"
                    for key, value in stats.items()
                )
                shown += f"events {{ metadata_id: {number(name)} offset_ps: {1000 * start} "
                shown += f"duration_ps: {1000 * duration} {values} }}\n"
            text += f'lines {{ name: "{line}" {shown} }}\n'
        for kind in ("event_metadata", "stat_metadata"):
            text += "".join(f'{kind} {{ key: {k} value {{ id: {k} name: "{n}" }} }}\n' for n, k in names.items())
        parts.append(f'planes {{ name: "{plane}" {text} }}')
    path.write_bytes(ProfileData.text_proto_to_serialized_xspace("\n".join(parts)))
    return path


def of(operation, module="jit_run_steps", **more):
    return {"hlo_op": operation, "hlo_module": module, **more}


def test_on_a_cpu_an_operation_ends_with_the_event_of_its_end(tmp_path):
    # conv returns at once, and runs on in other threads; copy runs meanwhile.
    one = [
        ("while.1", 0, 1000, of("while.1", _p=1)),
        ("conv", 0, 10, of("conv", _p=2)),
        ("copy.1", 400, 100, of("copy.1", _p=3)),
        ("end: copy.1", 480, 1, {"_c": 3}),
    ]
    other = [("end: conv", 900, 1, {"_c": 2}), ("dot", 950, 10, of("dot", "jit_other", _p=4))]
    path = xspace({"/host:CPU": {"one": one, "other": other}, "Task Environment": {}}, tmp_path / "vm.xplane.pb")
    ran = trace.read(path, "jit_run_steps", lambda name: name != "while.1")
    assert {name: (round(1e9 * each.seconds), each.times) for name, each in ran.items()} == {
        "conv": (850, 1),
        "copy.1": (50, 1),
    }


def test_on_gpus_streams_count_and_kernels_of_an_operation_are_one_run(tmp_path):
    def kernels(start):
        return [
            ("nchwToNhwc", start, 10, of("cudnn.1")),
            ("sm90_fprop", start + 10, 80, of("cudnn.1")),
            ("nchwToNhwc", start + 90, 10, of("cudnn.1")),
            ("loop_fusion", start + 100, 50, of("gathered")),
        ]

    stream = [*kernels(0), *kernels(200)]
    lines = {"Stream #13(Compute)": stream, "XLA Ops": stream, "Stream #14(Memcpy)": [("memcpy", 0, 400, {})]}
    path = xspace({f"/device:GPU:{index}": lines for index in range(2)}, tmp_path / "vm.xplane.pb")
    found = table.rows(Program(TEXT), path, steps=2)
    assert [(row.operation, row.runs, round(1e9 * row.seconds)) for row in found] == [
        ("cudnn.1", 1, 100),
        ("gathered", 1, 50),
    ]
    assert found[0].flops == PRODUCT and found[0].share == pytest.approx(2 / 3)
    lines = table.lines(found, most=1)
    assert len(lines) == 4 and lines[0].split()[:3] == ["operation", "ms", "share"]
    assert (
        f"{PRODUCT / 100:.1f}" in lines[1] and "66.7 %" in lines[1] and "1 others" in lines[2] and "100.0 %" in lines[3]
    )


# The recorder


class Fake:
    """Counts the steps that it is asked to take."""

    def __init__(self):
        self.calls = []

    def __call__(self, state, meter, data, count, step):
        self.calls.append(count)
        return state + count, meter


def record(folder, counts, monkeypatch, text=TEXT):
    """(steps of each call, what the trace held)."""
    fake, held = Fake(), []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: held.append(fake.calls.copy()))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: held.append(fake.calls.copy()))
    one = recorder.Recorder(folder, fake, lambda step: None, Console("none"))
    state = 0
    for count in counts:
        state, _ = one(state, None, None, count, state)
    one.finish()
    assert state == sum(counts)
    return fake.calls, held


@pytest.mark.parametrize(
    ("counts", "calls", "held"),
    [
        ([1, 1, 500, 3], [1, 1, 10, 490, 3], [[1, 1], [1, 1, 10]]),
        ([1, 2, 4, 8, 16], [1, 2, 4, 6, 2, 16], [[1, 2], [1, 2, 4, 6]]),
        ([5, 5, 2], [5, 5, 2], [[5, 5], [5, 5, 2]]),
        ([5, 5], [5, 5], []),
    ],
)
def test_a_few_steps_after_the_first_two_dispatches_are_traced(tmp_path, monkeypatch, counts, calls, held):
    assert record(tmp_path, counts, monkeypatch) == (calls, held)


def test_a_profiler_that_fails_is_a_warning(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("Only one profile may be run at a time.")

    fake = Fake()
    monkeypatch.setattr(jax.profiler, "start_trace", fail)
    one = recorder.Recorder(tmp_path, fake, lambda step: None, Console("none"))
    for count in (1, 1, 4, 30):
        one(0, None, None, count, 0)
    one.finish()
    assert sum(fake.calls) == 36
    error = capsys.readouterr().err
    assert error.count("Only one profile may be run at a time.") == 1 and len(error.splitlines()) == 1


def test_it_ends_with_its_program(tmp_path, monkeypatch):
    """The table is that of one program: steps of the next stage are not in it."""
    ended, fake = [], Fake()
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: ended.append(fake.calls.copy()))
    one = recorder.Recorder(tmp_path, fake, lambda step: "first" if step < 6 else None, Console("none"))
    state = 0
    for count in (1, 1, 4, 3, 3):
        state, _ = one(state, None, None, count, state)
    assert (state, ended) == (12, [[1, 1, 4]])


# Whole runs


# On CPUs, the first convolution is a product of patches; the second one has features enough for a convolution.
FLAGS = (*TINY, "--config.model.widths=(4, 40)")


@pytest.fixture(scope="module")
def profiled(run, tmp_path_factory):
    """(folder of the run, of the trace, what was printed)."""
    place = tmp_path_factory.mktemp("profile")
    done = run(*FLAGS, f"--workdir={place / 'run'}", f"--profile={place / 'deep' / 'trace'}")
    assert done.code == 0, done.err
    assert "no profile" not in done.err
    return place / "run", place / "deep" / "trace", done.out


def test_the_trace_can_be_opened(profiled):
    (xplane,) = profiled[1].glob("plugins/profile/*/*.xplane.pb")
    assert any(True for plane in ProfileData.from_file(str(xplane)).planes for _ in plane.lines)
    (events,) = profiled[1].glob("plugins/profile/*/*.trace.json.gz")
    assert json.loads(gzip.decompress(events.read_bytes()))["traceEvents"]


def test_the_table_has_the_convolution_with_its_flops(profiled):
    _, folder, out = profiled
    (path,) = folder.glob("plugins/profile/*/operations.csv")
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    (conv,) = [row for row in found if row["source"].startswith("jvp(CNN)/conv2/") and float(row["flops"])]
    # Of 64 images, cut from 32×32 to 24×24 and then pooled; from 4 channels to 40, with kernels of 3×3.
    assert float(conv["flops"]) == 2 * 64 * 12 * 12 * 40 * 3 * 3 * 4
    assert float(conv["bytes"]) == 4 * (64 * 12 * 12 * (4 + 40) + 3 * 3 * 4 * 40)
    assert float(conv["runs"]) == 1 and float(conv["seconds"]) > 0
    assert sum(float(row["share"]) for row in found) == pytest.approx(1)
    seconds = [float(row["seconds"]) for row in found]
    assert seconds == sorted(seconds, reverse=True)
    assert not any(row["kind"] in ("while", "call") for row in found)
    # The data set is not read as a whole.
    assert max(float(row["bytes"]) for row in found) < 4_000 * 32 * 32 * 3
    lines = out.splitlines()
    (head,) = [number for number, line in enumerate(lines) if line.startswith("operation ")]
    assert re.match(
        r"profile of 10 steps, per step and device: [\d.]+ ms, operations run for [\d.]+ ms", lines[head - 1]
    )
    assert lines[head + 1].startswith(found[0]["operation"])
    assert f"profile {path.parent}" in lines


def test_the_run_is_the_same_to_the_bit(run, profiled, tmp_path):
    assert run(*FLAGS, f"--workdir={tmp_path}").code == 0
    assert rows(profiled[0]) == rows(tmp_path)
    assert bits(profiled[0]) == bits(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_is_no_folder_is_one_line(run, tmp_path, place):
    (tmp_path / "file").touch()
    done = run(*TINY, f"--workdir={tmp_path / 'run'}", f"--profile={tmp_path / place}")
    assert done.code == 2 and len(done.err.splitlines()) == 1
    assert f"{tmp_path / 'file'} is not a folder; choose another --profile" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=eval", "--workdir=x"], "--profile has no effect with --mode=eval"),
        (["--mode=check", *TINY], "--profile has no effect with --mode=check"),
        (["--rerun=x"], "--profile has no effect with --rerun"),
    ],
)
def test_where_nothing_is_trained_it_is_refused(run, flags, message):
    done = run(*flags, "--profile=trace")
    assert done.code == 2 and len(done.err.splitlines()) == 1 and message in done.err
    done = run(*TINY, "--profile=")
    assert done.code == 2 and "--profile has no value" in done.err
