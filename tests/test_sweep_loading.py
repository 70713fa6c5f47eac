"""Sweeps from the command line: their files, --vary and overrides, and every mistake in one line."""

import sys

import pytest
from absl import flags
from runs import ROOT

from imgclf_jax import sweep
from imgclf_jax.errors import UserError
from imgclf_jax.sweep import loading
from imgclf_jax.terminal import cli

HEAD = "from imgclf_jax import sweep\nfrom imgclf_jax.config import default\n"
CONFIG = "def get_config():\n    config = default()\n    config.train.epochs = 2.0\n    return config\n"


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Writes files and loads the first of them, with flags of its own."""

    def call(files, *arguments, vary=()):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(HEAD + text)
        values = flags.FlagValues()
        flags.DEFINE_multi_string("vary", None, "", flag_values=values)
        flags.DEFINE_string("seeds", "1", "", flag_values=values)
        for module in (cli, loading):
            monkeypatch.setattr(module, "FLAGS", values)
        path = tmp_path / next(iter(files))
        return loading.load(["sweep", f"--config={path}", *(f"--vary={text}" for text in vary), *arguments])

    return call


def sweep_file(arguments, before=""):
    return f"{before}\ndef get_sweep():\n    return sweep.Sweep({arguments})\n"


BASE = {"base.py": CONFIG}
ABLATION = {"ablations/x.py": sweep_file('"../cnn.py", sweep.grid({"augment.pad": (0, 4)})'), "cnn.py": CONFIG}


# Files


def test_the_base_is_a_file_relative_to_that_of_the_sweep(load, tmp_path):
    found = load(ABLATION)
    assert found.config_file == str(tmp_path / "ablations" / "x.py")
    assert found.sweep.base.train.epochs == 2.0
    assert found.sweep.variants == sweep.grid({"augment.pad": (0, 4)})


def test_the_base_can_be_a_config(load):
    files = {"x.py": CONFIG + sweep_file('get_config(), sweep.variants({"a": {}}), folds=4')}
    found = load(files, "--config.train.epochs=5")
    assert found.sweep.base.train.epochs == 5.0 and found.sweep.base.is_locked
    assert found.sweep.folds == 4


def test_a_config_file_is_a_sweep_of_one_variant(load):
    found = load(BASE, "--config.augment.pad=3")
    assert found.sweep.variants == [sweep.Variant("base", {})]
    assert found.sweep.base.train.epochs == 2.0 and found.sweep.base.augment.pad == 3


def test_the_command_line_wins_over_common_changes(load):
    files = {"x.py": sweep_file('"base.py", sweep.variants({"a": {}}), {"train.epochs": 9.0, "augment.pad": 1}')} | BASE
    found = load(files, "--config.train.epochs=5", "--config.model.widths=(3, 4)")
    assert found.sweep.base.train.epochs == 5.0 and found.sweep.base.model.widths == (3, 4)
    assert found.sweep.changes == {"augment.pad": 1}


def test_a_value_of_config_can_be_a_separate_argument(load, tmp_path):
    load(ABLATION)
    path = str(tmp_path / "cnn.py")
    values = flags.FlagValues()
    loading.FLAGS = cli.FLAGS = values  # as the fixture has patched them, they are put back
    found = loading.load(["sweep", "--config.augment.pad=1", "--config", path, "--config.augment.cutout", "3"])
    assert found.config_file == path and found.sweep.base.augment.cutout == 3 and found.sweep.base.augment.pad == 1


def test_a_sweep_file_imports_from_its_own_folder(load, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "own_grid", raising=False)
    before = list(sys.path)
    text = "from own_grid import VARIANTS\n" + sweep_file('"base.py", VARIANTS')
    found = load({"x.py": text, "own_grid.py": "VARIANTS = sweep.grid({'augment.pad': (1,)})\n"} | BASE)
    assert [variant.name for variant in found.sweep.variants] == ["pad=1"]
    assert sys.path == before and not (tmp_path / "__pycache__").exists()


# --vary


def test_varied_fields_are_combined(load):
    found = load(BASE, vary=["optim.learning_rate=0.01,0.1", "augment.crop=(24,24), (28, 28)"])
    assert found.sweep.variants == sweep.grid(
        {"optim.learning_rate": (0.01, 0.1), "augment.crop": ((24, 24), (28, 28))}
    )


@pytest.mark.parametrize(
    ("text", "path", "values"),
    [
        ("optim.learning_rate=1e-3,1", "optim.learning_rate", [1e-3, 1.0]),
        ("train.batch_size=32, 64", "train.batch_size", [32, 64]),
        ("augment.flip=True,false", "augment.flip", [True, False]),
        ("optim.name=sgd,adam", "optim.name", ["sgd", "adam"]),
        ("data.train_split='train[:5]',\"a,b\",train[5:]", "data.train_split", ["train[:5]", "a,b", "train[5:]"]),
        ("data.valid_split=,test", "data.valid_split", ["", "test"]),
        ("augment.crop=(),[24,24]", "augment.crop", [(), [24, 24]]),
        ("model.dropout=None,0.5", "model.dropout", [None, 0.5]),
        ("train.steps=5", "train.steps", [5]),
    ],
)
def test_values_have_the_type_of_their_field(text, path, values):
    assert loading.parse_vary(text) == (path, values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.learning_rate", "write a field, = and its values"),
        ("", "write a field"),
        ("=3", "write a field"),
        ("optim.learning_rat=1", "unknown config field optim.learning_rat; did you mean optim.learning_rate?"),
        ("seed.x=1", "unknown config field seed.x"),
        ("optim=1", "optim is a section; name one of its fields"),
        ("optim.learning_rate=", "'' does not fit; the values must be numbers"),
        ("optim.learning_rate=0.1,,0.2", "'' does not fit"),
        ("optim.learning_rate=x", "'x' does not fit; the values must be numbers"),
        ("train.batch_size=1.5", "'1.5' does not fit; the values must be whole numbers"),
        ("augment.flip=1", "'1' does not fit; the values must be True or False"),
        ("augment.crop=24,24", "'24' does not fit; the values must be tuples such as (24,24)"),
        ("augment.crop=(24,24", "'(24,24' does not fit"),
        ("augment.crop=(a,b)", "'(a,b)' does not fit"),
        ("optim.name='sgd", "does not fit; the values must be text"),
        ("train.batch_size=None", "'None' does not fit"),
    ],
)
def test_a_mistake_in_vary_is_one_line(text, words):
    with pytest.raises(UserError) as caught:
        loading.parse_vary(text)
    (found,) = str(caught.value).splitlines()
    assert found.startswith(f"--vary={text}: ") and words in found


# Mistakes


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        ({"x.py": "def f(:\n"}, [], ["x.py, line 3: invalid syntax"]),
        ({"x.py": "y = 1\n"}, [], ["x.py has no get_sweep() or get_config()"]),
        ({"x.py": "def get_sweep():\n    z = 1\n    1 / 0\n"}, [], ["x.py failed in line 5: ZeroDivisionError"]),
        ({"x.py": "1 / 0\n"}, [], ["x.py failed in line 3: ZeroDivisionError"]),
        ({"x.py": "import sys\nsys.exit(3)\n"}, [], ["x.py failed: it ended the program with sys.exit(3)"]),
        ({"x.py": "get_sweep = 3\n"}, [], ["get_sweep in ", "is not a function"]),
        (
            {"x.py": sweep_file('"base.py", sweep.grid({"optim.name": "adam"})')},
            [],
            ["x.py failed in line 5: grid: optim.name needs a tuple of values"],
        ),
        ({"x.py": sweep_file('"base.py", sweep.gird({})')}, [], ["failed in line 5: ", "gird"]),
        ({"x.py": sweep_file('"base.py"')}, [], ["x.py failed in line 5: TypeError", "variants"]),
        (
            {"x.py": "def get_sweep():\n    return []\n"},
            [],
            ["get_sweep() of ", "returned list; return"],
        ),
        ({"x.py": sweep_file('3, sweep.variants({"a": {}})')}, [], ["the base is 3; give the path"]),
        (
            {"x.py": sweep_file('"base.py", {"a": {}}')} | BASE,
            [],
            ["{'a': {}} is not a list of variants"],
        ),
        ({"x.py": sweep_file('"base.py", [], changes=3')} | BASE, [], ["changes=3 must be a dict"]),
        ({"x.py": sweep_file('"bas.py", []')} | BASE, [], ["bas.py does not exist", "base.py"]),
        ({"x.py": sweep_file('"b.py", []'), "b.py": "x = 1\n"}, [], ["b.py has no get_config()"]),
        (
            {"x.py": sweep_file('"b.py", []'), "b.py": "def get_config():\n    return {}\n"},
            [],
            ["get_config() of", "returned dict; return a config made by default()"],
        ),
        (BASE, ["--config.optim.lr=1"], ["there is no field", "lr"]),
        (BASE, ["--config.train.epochs=x"], ["config.train.epochs", "x"]),
        (ABLATION, ["--config.optim.lr=1"], ["there is no field", "lr"]),
        (
            ABLATION,
            ["--config.augment.pad=3"],
            ["--config.augment.pad has no effect: every variant of"],
        ),
        (ABLATION, ["--vary=augment.flip=True,False"], ["--vary cannot be added to", "get_sweep()"]),
        (BASE, ["--vary=augment.pad=1", "--vary=augment.pad=2"], ["--vary=augment.pad=2: augment.pad is varied twice"]),
        (
            BASE,
            ["--vary=augment.pad=1", "--config.augment.pad=2"],
            ["augment.pad has no effect together"],
        ),
        (BASE, ["--config.seed=3"], ["--config.seed has no effect in a sweep; give --seeds"]),
        (BASE, ["--sedes=3"], ["sedes"]),
        (BASE, ["extra"], ["unexpected argument 'extra'"]),
    ],
)
def test_a_mistake_is_one_line(load, files, arguments, words):
    with pytest.raises(UserError) as caught:
        load(files, *arguments)
    (found,) = str(caught.value).splitlines()
    for word in words:
        assert word in found


@pytest.mark.parametrize(("arguments", "words"), [([], "is missing"), (["--config="], "has no value")])
def test_a_command_line_without_a_file(arguments, words):
    with pytest.raises(UserError, match=words):
        loading.load(["sweep", *arguments])


# The files of the project


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "ablations").glob("*.py")), ids=lambda path: path.stem)
class TestAblations:
    def test_every_variant_is_valid_and_different(self, path, monkeypatch):
        from imgclf_jax.data import loading as data_loading
        from imgclf_jax.sweep import resolving, validating

        values = flags.FlagValues()
        for module in (cli, loading):
            monkeypatch.setattr(module, "FLAGS", values)
        monkeypatch.setattr(data_loading, "load", None)
        # The sample takes the place of the data set, with the boundaries of the splits scaled down.
        arguments = ["--config.data.source=sample", "--config.parallel.devices=1"]
        found = loading.load(["sweep", f"--config={path}", *arguments])
        study = resolving.resolve(found.sweep, range(3), validating.in_this_process)
        assert len(study.groups) > 1 and len(study.runs) == 3 * len(study.groups)
        for group in study.groups:
            assert group.config.data.test_split and group.config.data.valid_split, "both are needed for a comparison"

    def test_the_docstring_says_the_command(self, path):
        text = path.read_text()
        assert f"\n    python -m imgclf_jax.sweep --config=configs/ablations/{path.name} --seeds=" in text
