"""Parts in a researcher's own file: trained, killed, resumed, evaluated, predicted with, reported and exported."""

import shutil
import signal
import sys
import zipfile

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from runs import ROOT, bits, record, rows
from synthetic import Trainer, assert_same_training, make_config, make_data, needs_eight_devices

from imgclf_jax import components, models
from imgclf_jax.errors import UserError
from imgclf_jax.models.adapter import Adapter
from imgclf_jax.models.conv import conv_general_dilated
from imgclf_jax.training import losses, metrics, optim
from imgclf_jax.training.sampling import balanced_order

pytest_plugins = ["run_fixtures"]

PARTS = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from own_layers import block

class Net(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x, train):
        x = block(self.width)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x)).mean((1, 2))
        return nn.Dense(self.num_classes)(nn.Dropout(0.2, deterministic=not train)(x))

def loss(logits, targets, scale=1.0):
    return scale * optax.softmax_cross_entropy(logits, targets)

def optimizer(learning_rate, beta):
    return optax.sgd(learning_rate, momentum=beta)

def schedule(steps, peak):
    return optax.linear_schedule(peak, 0.0, steps)

def noise(key, image):
    return jnp.clip(image + 0.1 * jax.random.normal(key, image.shape), 0, 1)

def blend(keys, images, targets):
    return (images + images[::-1]) / 2, (targets + targets[::-1]) / 2

def top2(logits, labels):
    return (jax.lax.top_k(logits, 2)[1] == labels[:, None]).any(-1).astype(jnp.float32)

def load(config, count):
    draw = np.random.RandomState(0)
    def part(n):
        labels = draw.randint(0, 3, n)
        return (draw.randint(0, 90, (n, 8, 8, 3)) + 40 * labels[:, None, None, None]).astype("uint8"), labels
    return {"train": part(count), "valid": part(20), "test": part(20), "class_names": ["a", "b", "c"]}

class Writer:
    def __init__(self, workdir, config):
        self.file = open(workdir / "own.txt", "a")
    def scalars(self, step, values):
        print(step, sorted(values), file=self.file, flush=True)
        raise RuntimeError("full")
    def close(self):
        self.file.close()
"""
CONFIG = """
from imgclf_jax.config import default

def get_config():
    config = default()
    config.model.name = "own_parts:Net"
    config.loss.name = "own_parts:loss"
    config.loss.options.scale = 2.0
    config.loss.class_weights = "balanced"
    config.optim.name, config.optim.options = "own_parts:optimizer", {"beta": 0.8}
    config.optim.schedule = "own_parts:schedule"
    config.optim.ema_decay = 0.9
    config.augment.extra = ("own_parts:noise", "own_parts:blend")
    config.metrics = ("own_parts:top2",)
    config.log.writers = ("own_parts:Writer",)
    config.log.tensorboard = False
    config.log.every_steps = 3
    config.data.source = "own_parts:load"
    config.data.options.count = 60
    config.train.sampling = "balanced"
    config.train.batch_size = 20
    config.train.steps = 8
    config.checkpoint.every_steps = 2
    return config
"""
WIDTH = "--config.model.options.width=6"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_parts.py").write_text(PARTS)
    (folder / "own_layers.py").write_text(
        "import flax.linen as nn\n\ndef block(width):\n    return nn.Conv(width, (3, 3))\n"
    )
    (folder / "own_config.py").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def complete(run, place):
    folder = place / "runs" / "whole"
    done = run(f"--config={place / 'own_config.py'}", WIDTH, f"--workdir={folder}")
    assert done.code == 0, done.err
    return folder, done


def test_a_run_uses_all_parts_and_records_where_they_come_from(place, complete):
    folder, done = complete
    assert "top2" in rows(folder)[0] and record(folder)["results"]["test"]["top2"] >= 0
    assert done.err.count("log.writers='own_parts:Writer' is switched off: RuntimeError: full") == 1
    assert (folder / "own.txt").read_text().startswith("3 ['train/accuracy', ")
    parts = record(folder)["provenance"]["parts"]
    assert set(parts) == {"own_parts", "own_layers"} and parts["own_layers"]["path"] == str(place / "own_layers.py")
    assert (folder / "config_file.txt").read_text() == CONFIG
    assert "text" not in record(folder)["provenance"]["config_file"]
    assert record(folder, "config.json")["model"]["options"] == {"width": 6}


def test_it_is_resumed_to_the_bit_but_not_with_other_code(run, place, complete, tmp_path):
    arguments = [f"--config={place / 'own_config.py'}", WIDTH, f"--workdir={tmp_path / 'run'}"]
    killed = run(*arguments, hooks=[["signal_after", "workdir.checkpoint:Checkpoints.save", 2, signal.SIGKILL]])
    assert killed.code == -signal.SIGKILL
    layers = place / "own_layers.py"
    text = layers.read_text()
    try:
        layers.write_text(f"{text}# edited\n")
        refused = run(*arguments)
    finally:
        layers.write_text(text)
    assert refused.code == 2 and "own_layers.py has changed: SHA-256" in refused.err
    assert "--allow_config_change" in refused.err
    assert run(*arguments).code == 0
    assert rows(tmp_path / "run") == rows(complete[0])
    assert bits(tmp_path / "run", 8) == bits(complete[0], 8)


def test_other_tools_find_the_parts_in_the_folders_that_are_named_alone(run, place, complete, tmp_path):
    folder, _ = complete
    missing = run("--mode=eval", f"--workdir={folder}")
    assert missing.code == 2 and f"add --parts={place}" in missing.err, missing
    done = run("--mode=eval", f"--workdir={folder}", cwd=place)
    assert done.code == 0, done.err
    assert f"accuracy {record(folder)['results']['test']['accuracy']:.4f}" in done.out and "top2 " in done.out
    report = run(f"--workdir={folder}", f"--parts={place}", f"--output={tmp_path / 'r'}", module="imgclf_jax.report")
    assert report.code == 0, report.err
    page = (tmp_path / "r" / "index.html").read_text()
    assert "confusion" in page.lower() and "model.options.width" in page
    preview = [f"--config={place / 'own_config.py'}", f"--output={tmp_path / 'p.png'}"]
    assert run(*preview, module="imgclf_jax.preview").code == 0


def test_a_network_needs_neither_the_optimizer_nor_the_loss(run, place, complete, tmp_path):
    folder, model = complete[0], tmp_path / "only_the_model"
    model.mkdir()
    shutil.copy(place / "own_layers.py", model)
    without = "".join(PARTS.partition("def loss")[:1])
    (model / "own_parts.py").write_text(without)
    flags = [f"--workdir={folder}", f"--parts={model}"]
    done = run(*flags, f"--output={tmp_path / 'model.zip'}", module="imgclf_jax.export")
    assert done.code == 0, done.err
    assert "own_parts.py has changed" in done.err and "metric is left out" in done.err
    draws = np.random.RandomState(1).randint(0, 255, (2, 8, 8, 3)).astype(np.uint8)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        network = jax.export.deserialize(bytearray(archive.read("model.stablehlo")))
    assert np.asarray(network.call(draws)).sum(-1) == pytest.approx([1, 1], abs=1e-5)
    from PIL import Image

    Image.fromarray(draws[0]).save(tmp_path / "photo.png")
    done = run(*flags, str(tmp_path / "photo.png"), "--format=csv", module="imgclf_jax.predict")
    assert done.code == 0, done.err
    best = float(np.asarray(network.call(draws)).max(-1)[0])
    assert float(done.out.splitlines()[1].split(",")[2]) == pytest.approx(best, abs=1e-3)


def test_a_sweep_finds_them(run, place, tmp_path):
    flags = [f"--config={place / 'own_config.py'}", "--vary=model.options.width=2,3", "--config.train.steps=2"]
    done = run(*flags, f"--workdir={tmp_path / 'sweep'}", module="imgclf_jax.sweep")
    assert done.code == 0, done.out + done.err
    assert len(list((tmp_path / "sweep").glob("width=*/seed0/run.json"))) == 2


# Stock networks in the process of the tests


class Stock(nn.Module):
    """`deterministic` instead of `train`, and no field for the classes."""

    features: int = 10
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, deterministic):
        x = nn.BatchNorm(use_running_average=deterministic)(nn.Conv(4, (3, 3))(x))
        x = nn.Dropout(self.rate, deterministic=deterministic)(nn.relu(x)).mean((1, 2))
        return nn.Dense(self.features)(x)


class Sized(nn.Module):
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes + 1, dtype=self.dtype)(x.mean((1, 2)))


class Modern(nnx.Module):
    """A network of Flax NNX."""

    def __init__(self, num_classes, axis_name, rngs):
        convolution = {"conv_general_dilated": conv_general_dilated, "rngs": rngs}
        self.conv = nnx.Conv(3, 4, (3, 3), **convolution)
        self.norm = nnx.BatchNorm(4, axis_name=axis_name, rngs=rngs)
        self.dropout = nnx.Dropout(0.0, rngs=rngs)
        self.output = nnx.Linear(4, num_classes, rngs=rngs)

    def __call__(self, x, train):
        x = nnx.relu(self.norm(self.conv(x), use_running_average=not train)).mean((1, 2))
        return self.output(self.dropout(x, deterministic=not train))


def bridged(num_classes, axis_name=None):
    return nnx.bridge.to_linen(Modern, num_classes, axis_name)


class Broken(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ jnp.zeros((7, 7))


def means(logits, targets):
    return jnp.mean(logits)


@pytest.fixture
def here(monkeypatch):
    """The name under which parts in this file are found."""
    monkeypatch.setitem(sys.modules, "parts_of_this_test", sys.modules[__name__])
    return "parts_of_this_test"


@needs_eight_devices
@pytest.mark.parametrize(
    ("network", "strategy"), [("Stock", "jit"), ("Stock", "shard_map"), ("Stock", "pmap"), ("bridged", "shard_map")]
)
def test_batch_normalization_sees_the_global_batch(here, network, strategy):
    images, labels = make_data(64)
    changes = {"model.name": f"{here}:{network}", "train.batch_size": 16}
    alone = Trainer(make_config(changes), images, labels)
    several = Trainer(make_config(changes, {"parallel.devices": 8, "parallel.strategy": strategy}), images, labels)
    assert_same_training(several.train(several.init(), 3), alone.train(alone.init(), 3))


def test_stock_dropout_is_a_function_of_the_keys():
    network = Adapter(Stock(rate=0.5))
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    variables = network.init(jax.random.key(1), images)

    def logits(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        return network.apply(variables, images, train=True, keys=keys, mutable=["batch_stats"])[0]

    np.testing.assert_array_equal(logits(0), logits(0))
    assert (logits(0) != logits(1)).any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Stock", []),
        ("bridged", []),
        ("Sized", ["maps images [2, 8, 8, 3] to [2, 11]; it must be logits [2, 10]"]),
        ("Broken", ["fails on images [8, 8, 3]: TypeError"]),
        ("means", ["model.options.logits is missing"]),
    ],
)
def test_a_network_that_does_not_fit_is_refused(here, name, expected):
    config = make_config({"model.name": f"{here}:{name}"})
    lines = models.problems(config.model, (8, 8, 3), 10)
    assert all(text in line for text, line in zip(expected, lines, strict=False)) and bool(lines) == bool(expected)


def test_our_fields_go_only_to_networks_that_have_them(here):
    config = make_config({"model.name": f"{here}:Sized", "model.dtype": "bfloat16"})
    assert models.create(config.model, 3).module.dtype == jnp.bfloat16
    config.model.widths = (4,)
    assert "has no field widths" in models.problems(config.model, (8, 8, 3), 3)[0]


# The other slots


def test_a_loss_that_is_no_value_for_each_example_is_refused(here):
    config = make_config({"loss.name": f"{here}:means"})
    (line,) = losses.problems(config.loss, 3)
    assert "maps 4 examples to []; it must be [4]" in line


def test_losses():
    logits, targets = jnp.array([[2.0, -1.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0]])
    p = jax.nn.softmax(logits)[0, 0]
    np.testing.assert_allclose(losses.focal(logits, targets, 2.0), [-((1 - p) ** 2) * jnp.log(p)], rtol=1e-5)
    expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0)) + np.log(2)
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, targets), [expected], rtol=1e-5)
    certain = jax.grad(lambda x: losses.focal(x, targets, 0.5).sum())(jnp.array([[100.0, 0.0, 0.0]]))
    assert jnp.isfinite(certain).all()
    config = make_config({"loss.class_weights": "balanced"}).loss
    assert losses.create(make_config().loss, 3) is None
    counts = np.array([6, 3, 0])
    np.testing.assert_allclose(losses.class_weights("balanced", 3, counts), [0.75, 1.5, 0])
    weighted = losses.create(config, 3, counts)
    np.testing.assert_allclose(weighted(logits, targets), -0.75 * np.log(p)[None], rtol=1e-5)
    for wrong in ("1, 2", "1, 2, -3", "x"):
        config.class_weights = wrong
        assert "3 numbers" in losses.problems(config, 3)[0]


def test_optimizers_of_optax_are_found_with_their_options():
    config = make_config({"optim.name": "optax:lion"})
    config.optim.options.b1 = 0.8
    assert optim.problems(config.optim) == []
    config.optim.options = {"b11": 1}
    assert "optim.options.b11: optax:lion has no such option; did you mean b1?" in optim.problems(config.optim)[0]
    config.optim.name, config.optim.options = "optax:apply_updates", {}
    assert optim.problems(config.optim)


def test_metrics_keep_their_names_apart():
    assert metrics.problems(["jax.numpy:ravel"], 3)
    assert "is taken" in metrics.problems(["parts:loss"], 3)[0]
    assert metrics.columns(metrics.METRICS) == metrics.COLUMNS


def test_balanced_sampling_draws_each_class_equally_often():
    labels = np.array([0] * 90 + [1] * 9 + [3], np.int32)
    draws = np.concatenate([labels[balanced_order(jax.random.key(0), epoch, labels)] for epoch in range(60)])
    assert np.bincount(draws, minlength=4) / len(draws) == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.02)
    one, other = (balanced_order(jax.random.key(0), epoch, labels) for epoch in (0, 1))
    assert (one != other).any()


def test_an_unknown_model_is_refused():
    with pytest.raises(UserError, match="=resnet18 "):
        components.find("resnet19", models.MODELS, "model.name")


def test_the_examples_of_the_page_work(run, tmp_path):
    page = (ROOT / "docs/parts.md").read_text()
    for block in page.split("```python\n")[1:]:
        name, _, code = block.partition("```")[0].partition("\n")
        assert len(code.splitlines()) <= 20
        (tmp_path / name.removeprefix("# ")).write_text(code)
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(f"--config={tmp_path / 'mine.py'}", f"--workdir={folder}", cwd=elsewhere)
    assert done.code == 0, done.err
    assert record(folder)["status"] == "complete" and "brier" in record(folder)["results"]["test"]
    assert (folder / "lines.jsonl").read_text().count("train/loss") == 5
    done = run(f"--workdir={folder}", f"--parts={tmp_path}", "--mode=eval", "--split=test", cwd=elsewhere)
    assert done.code == 0, done.err
