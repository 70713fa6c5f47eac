"""Parts of one's own are found where they should be, and each mistake with them is one clear message."""

import hashlib
import itertools
import sys

import pytest

from imgclf_jax import components
from imgclf_jax import config as configs
from imgclf_jax.components import Call
from imgclf_jax.errors import UserError
from imgclf_jax.terminal import config_file

TABLE = {"cnn": 1, "mlp": 2}
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def search():
    """Restores the folders that are searched, and forgets what was imported."""
    before, path = set(sys.modules), list(sys.path)
    yield
    components.look_in([])
    sys.path[:] = path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def module(tmp_path):
    """Writes a module with a new name, and returns the name."""

    def write(text, folder=tmp_path):
        name = f"part_of_a_test_{next(_numbers)}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        return name

    return write


def message(name, table=TABLE, slot="model.name"):
    with pytest.raises(UserError) as error:
        components.find(name, table, slot)
    return str(error.value)


def test_ours_are_found_by_name():
    assert components.find("mlp", TABLE, "model.name") == 2
    text = message("cn")
    assert text == "model.name='cn' is unknown; give --config.model.name=cnn (or mlp, \"module:name\" of your own)"


def test_own_parts_are_found_in_the_folders_in_order_and_among_installed_packages(module, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    name = module("class Net:\n    width = 1\n", first)
    (second / f"{name}.py").parent.mkdir()
    (second / f"{name}.py").write_text("Net = None\n")
    components.look_in([first, second])
    assert components.find(f"{name}:Net", {}, "model.name").width == 1
    assert components.find(f"{name}:Net.width", {}, "model.name") == 1
    assert components.find("json:dumps", {}, "model.name") is __import__("json").dumps
    assert sys.path[-2:] == [str(first), str(second)]  # last: nothing installed is hidden
    components.look_in([tmp_path])
    assert str(first) not in sys.path


def test_a_missing_module_says_where_it_was_looked_for_and_what_to_do(tmp_path):
    components.look_in([tmp_path])
    text = message("my_missing_nets:Net")
    assert str(tmp_path) in text and "add --parts=DIR, the folder of my_missing_nets.py" in text
    components.remember({"my_missing_nets": {"path": "/there/my_missing_nets.py", "sha256": "0123456789abcdef"}})
    text = message("my_missing_nets:Net")
    assert text.endswith("the run used /there/my_missing_nets.py with SHA-256 0123456789ab: add --parts=/there")


def test_a_missing_attribute_names_the_nearest(module, tmp_path):
    name = module("class WideResNet:\n    pass\n")
    components.look_in([tmp_path])
    assert message(f"{name}:WideResnet").endswith("has no WideResnet; did you mean WideResNet?")
    assert 'is not "module:name"' in message(f"{name}:")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f():\n    return 1 / 0\nf()\n", "ZeroDivisionError: division by zero"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("def f(:\n", "SyntaxError"),
    ],
)
def test_an_import_that_raises_shows_the_lines_of_the_module_alone(module, tmp_path, text, reason):
    name = module(text)
    components.look_in([tmp_path])
    first, *rest = message(f"{name}:Net").splitlines()
    assert f"importing {name} failed: {reason}" in first
    assert any(f"{name}.py" in line for line in rest) and all(line.startswith("  ") for line in rest)
    assert "imgclf_jax" not in "".join(rest) and "importlib" not in "".join(rest)


def test_nothing_is_imported_from_the_folder_of_a_run(module, tmp_path):
    name = module("Net = 1\n")
    for file in components.RUN_FILES:
        (tmp_path / file).write_text("{}")
    components.look_in([tmp_path])
    assert "there is no module" in message(f"{name}:Net")
    sys.path.insert(0, str(tmp_path))
    assert "from which no code is imported" in message(f"{name}:Net")
    assert name not in sys.modules


def test_one_process_does_not_mix_two_files_of_one_name(module, tmp_path):
    name = module("Net = 1\n", tmp_path / "a")
    components.look_in([tmp_path / "a"])
    components.find(f"{name}:Net", {}, "model.name")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / f"{name}.py").write_text("Net = 2\n")
    components.look_in([tmp_path / "b"])
    assert "this process has already imported" in message(f"{name}:Net")


def whole(logits, targets, gamma, *, scale=1.0):
    return logits


def open_ended(learning_rate, **others):
    return others


@pytest.mark.parametrize(
    ("part", "options", "call", "expected"),
    [
        (whole, {"gamma": 1}, Call(2), []),
        (whole, {}, Call(2), ["loss.options.gamma is missing"]),
        (whole, {"gama": 1}, Call(2), ["no such option; did you mean gamma?", "gamma is missing"]),
        (whole, {"gamma": 1, "targets": 2}, Call(2), ["gets targets from elsewhere"]),
        (open_ended, {"anything": 1}, Call(0, ("learning_rate",)), []),
        (open_ended, {"learning_rate": 1}, Call(0, ("learning_rate",)), ["gets learning_rate from elsewhere"]),
        (3, {}, Call(), ["cannot be called"]),
    ],
)
def test_options_are_checked_against_the_signature(part, options, call, expected):
    lines = components.option_problems(part, "m:f", "loss.options", options, call)
    assert len(lines) == len(expected)
    assert all(text in line for text, line in zip(expected, lines, strict=True))


def test_options_of_our_parts_have_the_types_of_their_defaults():
    defaults = {"depth": 2, "rate": 0.5, "name": "x", "flag": True, "sizes": (1, 2)}

    def found(**options):
        return components.known_option_problems("model net", "model.options", options, defaults)

    assert found(depth=3, rate=1, name="y", flag=False, sizes=()) == found() == []
    assert found(dept=3) == ["model.options.dept: model net has no such option; did you mean depth?"]
    assert found(q=3) == ["model.options.q: model net has no such option; it has depth, rate, name, flag, sizes"]
    wrong = {"depth": True, "rate": "a", "name": 1, "flag": 1, "sizes": 3}
    assert [line.partition(" must be of type ")[::2] for line in found(**wrong)] == [
        (f"model.options.{name}={value!r}", type(defaults[name]).__name__) for name, value in wrong.items()
    ]


def test_the_sources_of_a_part_are_its_file_and_those_that_it_imports(module, tmp_path):
    helper = module("WIDTH = 1\n")
    name = module(f"import json, numpy\ndef f():\n    from {helper} import WIDTH\n    return WIDTH\nf()\n")
    components.look_in([tmp_path])
    components.find(f"{name}:f", {}, "loss.name")
    found = components.sources([f"{name}:f", "numpy:sum"])
    assert set(found) == {helper, name, "numpy"}
    assert found["numpy"]["distribution"] == "numpy" and found["numpy"]["version"]
    digest = hashlib.sha256((tmp_path / f"{helper}.py").read_bytes()).hexdigest()
    assert found[helper] == {"path": str(tmp_path / f"{helper}.py"), "sha256": digest}
    # An edit after the import does not change what this process has run.
    (tmp_path / f"{helper}.py").write_text("WIDTH = 2\n")
    assert components.sources([f"{name}:f"])[helper]["sha256"] == digest


def test_changes_name_the_files():
    old = {"a": {"path": "/x/a.py", "sha256": "1" * 64}, "b": {"path": "/x/b.py", "sha256": "2" * 64}}
    moved = {name: part | {"path": f"/y/{name}.py"} for name, part in old.items()}
    assert components.changes(old, moved) == []
    assert components.changes(old, {"a": old["a"] | {"sha256": "3" * 64}}) == [
        "a.py has changed: SHA-256 111111111111 -> 333333333333",
        "b.py is no longer used",
    ]


# Options in configs and on command lines


def test_options_have_free_keys_and_survive_json():
    config = configs.default()
    config.model.options.depth = 28
    config.loss.options = {"sizes": (1, 2), "name": "x", "on": True, "rate": 0.5}
    again = configs.from_json(configs.to_json(config))
    assert again == config and again.loss.options.sizes == (1, 2)
    assert configs.problems(config) == []
    assert configs.identity(config) != configs.identity(configs.default())
    assert configs.differences(configs.to_json(configs.default()), configs.to_json(config))[-1].startswith(
        "model.options"
    )
    config.model.options.deep = {"inner": 1}
    assert any("options have no sections" in line for line in configs.problems(config))


def test_options_of_the_command_line_need_not_be_in_the_file():
    argv = ["main", "--config.model.options.depth=28", "--config.seed=1", "--config.optim.schedule_options.low", "1e-3"]
    argv += ["--config.loss.options.sizes=(1, 2)", "--config.loss.options.on=true", "--config.loss.options.name=a b"]
    rest, options = config_file.split_options(argv)
    assert rest == ["main", "--config.seed=1"]
    config = configs.default()
    config.model.options.depth = "deep"
    config_file.set_options(config.lock(), options, "cnn.py")
    assert config.model.options.depth == 28 and config.optim.schedule_options.low == 1e-3
    assert config.loss.options.to_dict() == {"sizes": (1, 2), "on": True, "name": "a b"}
    for wrong in ("--config.model.options.a={}", "--config.model.options.a", "--config.model.options.a.b=1"):
        with pytest.raises(UserError):
            config_file.split_options(["main", wrong])
    with pytest.raises(UserError, match="there is no field log"):
        config_file.set_options(config, {"log.options.a": 1}, "cnn.py")
