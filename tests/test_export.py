"""export.py: a file that JAX alone can load, that gives the network's numbers, and that holds its weights once."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import jax
import jax.export
import numpy as np
import pytest
from PIL import Image
from runs import ROOT, environment
from synthetic import make_config, make_data, make_experiment, make_normalization

from imgclf_jax import export, load
from imgclf_jax.predict.network import Network
from imgclf_jax.predict.reading import predict_files
from imgclf_jax.training import trained

pytest.importorskip("flatbuffers")  # which jax.export writes and reads with
pytest_plugins = ["run_fixtures"]

BATCHES = (1, 3, 64)
SHAPE = (20, 22, 3)
NAMES = ("ant", "bee", "wasp", "fly")
NORMED = {"model.name": "cnn", "model.widths": (4, 6), "model.hidden": (10,), "model.norm": "batch"}
CROPPED = {"model.name": "softmax", "data.resize": "crop"}
SIGMOID = {"model.name": "small_cnn", "model.widths": (4, 4), "model.hidden": (8,), "model.head": "sigmoid"}
CASES = {
    "softmax": ({"model.name": "softmax", "data.pixels": "mean_image"}, SHAPE, NAMES),
    "mlp": ({"model.name": "mlp", "model.hidden": (16, 8), "model.dropout": 0.5}, SHAPE, NAMES),
    "cnn": ({**NORMED, "data.pixels": "standardized", "augment.crop": (16, 17), "augment.pad": 2}, SHAPE, NAMES),
    # What the network sees is larger than the images.
    "cnn of padded images": ({**NORMED, "augment.crop": (24, 22), "augment.pad": 2}, SHAPE, NAMES),
    "cnn of gray images": (NORMED, (16, 16, 1), NAMES),
    "cnn in bfloat16": ({**NORMED, "model.dtype": "bfloat16"}, SHAPE, NAMES),
    "softmax of cropped photos": (CROPPED, (16, 24, 3), NAMES),
    "softmax of transparent photos": (CROPPED, (24, 16, 4), NAMES),
    "tutorial_cnn": ({"model.name": "tutorial_cnn"}, SHAPE, NAMES),
    "small_cnn": (SIGMOID, SHAPE, NAMES[:2]),
}


def draw(shape):
    """Images of different brightness, which any network separates: uint8 [64, *shape]."""
    images, _ = make_data(max(BATCHES), shape)
    return (images * np.linspace(0.1, 1, len(images))[:, None, None, None]).astype(np.uint8)


def make_network(case):
    """A network whose every weight is drawn, so that none can be left out without a difference."""
    changes, shape, names = CASES[case]
    config = make_config(changes)
    images = draw(shape)
    experiment = make_experiment(config, images, len(names))
    draws = np.random.default_rng(1)

    def weight(path, leaf):
        mean = 1 if path[-1].key in ("scale", "var") else 0
        return (mean + 0.1 * draws.normal(size=leaf.shape)).astype(np.float32)

    variables = jax.eval_shape(lambda key: experiment.init(key).eval_variables(), experiment.key)
    variables = jax.tree.map_with_path(weight, variables)
    normalization = make_normalization(config, images)
    # Logits about 0 that differ between images, so that probabilities are far from 0 and 1.
    output = variables["params"]["output"]
    logits = np.asarray(jax.jit(experiment.logits)(variables, normalization, images))
    logits = logits[:, -output["bias"].size :]
    for name, moved in (("bias", output["bias"] - logits.mean(0)), ("kernel", output["kernel"])):
        output[name] = np.asarray(moved / logits.std(0), np.float32)
    record = {"reported_step": 3, "data": {"name": "made up"}, "results": {"test": {"accuracy": 0.5}}}
    experiment = dataclasses.replace(experiment, class_names=names)
    return trained.Trained(ROOT / "nowhere", record, 3, experiment, variables, normalization)


@pytest.fixture(scope="module")
def networks():
    return {case: make_network(case) for case in CASES}


# What a user does with the files, where neither this package nor Flax can be imported.
USE = """
import os, sys
sys.modules["imgclf_jax"] = sys.modules["flax"] = None
import numpy as np
folder, cases, batches = sys.argv[1], sys.argv[2].split(","), [int(size) for size in sys.argv[3].split(",")]
found = {}
for case in cases:
    images = np.load(f"{folder}/{case}.npy")
    scope = {}
    exec(open(f"{folder}/{case}.py").read(), scope)
    assert scope["probabilities"].shape == (len(scope["model"]["class_names"]),)
    for size in batches:
        found[f"{case}/{size}"] = np.asarray(scope["network"](images[:size]))
    found[f"{case}/names"] = np.array(scope["model"]["class_names"])
    photos = sorted(os.listdir(f"{folder}/photos"))
    arrays = np.stack([scope["read"](f"photos/{name}") for name in photos])
    found[f"{case}/photos"] = np.asarray(scope["network"](arrays))
    network = scope["jax"].export.deserialize(scope["archive"].read("model.stablehlo"))
    found[f"{case}/platforms"] = np.array(network.platforms)
    found[f"{case}/shapes"] = np.array([str(network.in_avals), str(network.out_avals)])
assert not {name.partition(".")[0] for name, module in sys.modules.items() if module} & {"imgclf_jax", "flax", "optax"}
np.savez(f"{folder}/found.npz", **found)
"""


def save_photos(folder):
    """Photos of other sizes than any network takes, each with something that a careless reader gets wrong."""
    folder.mkdir()
    draws = np.random.default_rng(3)

    def smooth(size, *channels):
        coarse = draws.integers(0, 256, (5, 4, *channels)).astype(np.uint8)
        return Image.fromarray(coarse).resize(size)

    exif = Image.Exif()
    exif[0x0112] = 6
    smooth((90, 50), 3).save(folder / "turned.jpg", exif=exif)
    smooth((31, 80), 4).save(folder / "transparent.png")
    smooth((70, 40)).save(folder / "gray.png")
    smooth((40, 41), 3).quantize(8).save(folder / "palette.gif")
    values = np.linspace(0, 65535, 60 * 45).astype(np.uint16).reshape(60, 45)
    Image.fromarray(values).save(folder / "sixteen_bits.png")
    smooth((64, 64), 3).convert("CMYK").save(folder / "cmyk.jpg")
    return sorted(folder.iterdir())


def use(folder, images):
    """Runs what `export.usage` says on `images` (by case) in a process of its own -> what it found, by name."""
    photos = save_photos(folder / "photos")
    (folder / "photo.jpg").write_bytes(photos[-1].read_bytes())
    for case, values in images.items():
        np.save(folder / f"{case}.npy", values)
        (folder / f"{case}.py").write_text(export.usage(f"{folder / case}.zip"))
    environ = environment()
    environ.pop("PYTHONPATH")
    command = [sys.executable, "-c", USE, str(folder), ",".join(images), ",".join(map(str, BATCHES))]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "found.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def used(networks, tmp_path_factory):
    """What a fresh process finds in the files of all networks."""
    folder = tmp_path_factory.mktemp("used")
    for case, network in networks.items():
        export.write(network, folder / f"{case}.zip")
    return use(folder, {case: draw(network.image_shape) for case, network in networks.items()})


@pytest.mark.parametrize("case", CASES)
def test_a_process_without_this_package_gets_the_same_probabilities(networks, used, case):
    network = Network(networks[case])
    images = draw(network.image_shape)
    assert network(images).std(0).max() > 0.05  # that they are of the right images can be seen
    for size in BATCHES:
        expected = network(images[:size])
        assert used[f"{case}/{size}"].dtype == np.float32
        np.testing.assert_allclose(used[f"{case}/{size}"], expected, rtol=0, atol=1e-6)
    assert tuple(used[f"{case}/names"]) == network.class_names
    height, width, channels = network.image_shape
    assert used[f"{case}/shapes"].tolist() == [
        f"(ShapedArray(uint8[batch,{height},{width},{channels}]),)",
        f"(ShapedArray(float32[batch,{len(network.class_names)}]),)",
    ]
    assert tuple(used[f"{case}/platforms"]) == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize("case", CASES)
def test_photos_get_the_probabilities_that_predict_gives_them(networks, used, tmp_path, case):
    network = networks[case]
    files = save_photos(tmp_path / "photos")
    names = [(str(file), None) for file in files]
    resize = network.config.data.resize
    (rows,) = predict_files(names, Network(network), network.image_shape, resize, len(files))
    expected = np.stack([row.probabilities for row in rows])
    np.testing.assert_allclose(used[f"{case}/photos"], expected, rtol=0, atol=1e-6)
    assert expected.std(0).max() > 0.01


def test_the_description_says_how_a_photo_becomes_an_image(networks):
    found = {case: export.describe(network)["preprocessing"] for case, network in networks.items()}
    shown = {case: (how["mode"], how["background"], how["resize"]) for case, how in found.items()}
    assert shown["cnn"] == ("RGB", "white", "stretch")
    assert shown["cnn of gray images"] == ("L", "white", "stretch")
    assert shown["softmax of cropped photos"] == ("RGB", "white", "crop")
    assert shown["softmax of transparent photos"] == ("RGBA", None, "crop")
    assert "EXIF" in found["cnn"]["steps"][0]
    network = networks["cnn"]
    experiment = dataclasses.replace(network.experiment, image_shape=(20, 22, 2))
    assert export.preprocessing(network._replace(experiment=experiment)) is None


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_does_not_depend_on_the_machine(networks, monkeypatch, case):
    here = export.serialize(networks[case])
    for backend in ("gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert export.serialize(networks[case]) == here
    module = jax.export.deserialize(bytearray(here)).mlir_module()
    # Nothing that only one platform, or only a version of a library, knows.
    calls = {line.split("custom_call @")[1].split("(")[0] for line in module.splitlines() if "custom_call @" in line}
    assert calls <= {"shape_assertion"}
    assert str(ROOT).encode() not in here


@pytest.mark.parametrize("case", ["mlp", "cnn", "small_cnn"])
def test_weights_are_in_the_file_once(networks, tmp_path, case):
    export.write(networks[case], tmp_path / "model.zip")
    content = (tmp_path / "model.zip").read_bytes()
    leaves = jax.tree.leaves(networks[case].variables)
    for leaf in leaves:
        assert content.count(leaf.tobytes()) == 1
    assert len(content) < 4 * sum(leaf.size for leaf in leaves) + 30_000


def test_the_description_says_where_the_network_comes_from(networks, tmp_path):
    network = networks["cnn"]
    for path, step in (("reported.zip", 3), ("other.zip", 2)):
        export.write(network._replace(step=step), tmp_path / path)
        with zipfile.ZipFile(tmp_path / path) as archive:
            assert archive.namelist() == ["model.stablehlo", "model.json"]
            assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
            content = json.loads(archive.read("model.json"))
        assert content["class_names"] == list(NAMES) and content["image_shape"] == list(SHAPE)
        assert content["step"] == step
        assert content["config"]["augment"]["crop"] == [16, 17]
        assert content["data"] == {"name": "made up"}
        assert content["exported_with"]["packages"]["jax"] == jax.__version__
        # Accuracies are those of the reported checkpoint.
        assert content["results"] == ({"test": {"accuracy": 0.5}} if step == 3 else None)


# The tool


def tool(run, *arguments, **options):
    return run(*arguments, module="imgclf_jax.export", **options)


def test_the_tool_writes_a_file_that_can_be_used_as_it_says(run, finished, tmp_path):
    path = tmp_path / "run.zip"
    done = tool(run, f"--workdir={finished.folder}", f"--output={path}")
    assert done.code == 0 and done.err == ""
    assert done.out.startswith(f"wrote {path}, ")
    assert export.usage(str(path)) in done.out
    assert list(tmp_path.iterdir()) == [path]
    images = draw((32, 32, 3))
    found = use(tmp_path, {"run": images})
    np.testing.assert_allclose(found["run/64"], load(finished.folder)(images), rtol=0, atol=1e-6)
    before = path.read_bytes()
    assert_one_error(tool(run, f"--workdir={finished.folder}", f"--output={path}"), f"{path} exists")
    assert path.read_bytes() == before


def assert_one_error(done, *words):
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("error: ") and len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


MISTAKES = {
    "no workdir": (["--output=new.zip"], "--workdir is missing"),
    "no run": (["--output=new.zip", "--workdir=."], ". holds no run"),
    "no output": (["--workdir=."], "--output is missing"),
    "output folder missing": (["--workdir=.", "--output=nowhere/new.zip"], "folder nowhere does not exist"),
    "output is a folder": (["--workdir=.", "--output=."], ". is a folder", "--output"),
    "unknown flag": (["--workdir=.", "--outptu=new.zip"], "'outptu'", "output"),
    "unknown checkpoint": (["--workdir=.", "--output=new.zip", "--checkpoint=first"], "--checkpoint=first", "best"),
    "argument that is no flag": (["--workdir=.", "--output=new.zip", "photo.png"], "'photo.png'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_is_reported_in_one_line(run, tmp_path, case):
    arguments, *words = MISTAKES[case]
    assert_one_error(tool(run, *arguments, cwd=tmp_path), *words)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_reported_before_anything_is_read():
    code = (
        "import sys; from imgclf_jax import export; from imgclf_jax.terminal import cli\n"
        "sys.modules['flatbuffers'] = None\n"
        "sys.argv = ['export', '--workdir=x', '--output=new.zip']\n"
        "assert cli.run_tool(export.main, takes_config=False) == 2\n"
        "print(sorted({'jax', 'flax', 'rich', 'orbax', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
    assert "flatbuffers" in done.stderr


def test_help_names_every_flag(run):
    done = tool(run, "--help")
    assert done.code == 0
    for flag in ("--workdir", "--output", "--checkpoint", "jax.export.deserialize"):
        assert flag in done.out
    assert "--config" not in done.out
