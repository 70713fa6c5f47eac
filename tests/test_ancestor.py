"""init: runs that start from a trained network, and frozen parameters."""

import shutil
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_runs import STEPS, config_of, data_of, run
from runs import bits, record, rows
from synthetic import SMALL_CNN, Trainer, make_config, make_data

from imgclf_jax.check import check
from imgclf_jax.config import identity
from imgclf_jax.errors import UserError
from imgclf_jax.sweep import together
from imgclf_jax.training import freezing, trained
from imgclf_jax.training.run import Calls
from imgclf_jax.training.state import TrainState
from imgclf_jax.workdir.checkpoint import Checkpoints

pytest_plugins = ["run_fixtures"]

BODY = ["conv1", "conv2", "dense1", "norm1", "norm2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A file with images of two classes."""
    return data_of(tmp_path_factory.mktemp("two"), 2, seed=1)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A run on three classes, with an average of its parameters."""
    root = tmp_path_factory.mktemp("old")
    return run(config_of(data_of(root, 3), {"optim.ema_decay": 0.9}), root / "run")


@pytest.fixture(scope="module")
def tuned(old, place, tmp_path_factory):
    """A run that started from `old`."""
    return run(config_of(place, {"init.run": str(old)}), tmp_path_factory.mktemp("tuned") / "run")


def saved(folder, step):
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        return checkpoints.restore(step)["state"]
    finally:
        checkpoints.close()


def start(config, folder):
    """The parameters and statistics after a step with a learning rate that moves nothing."""
    config.update_from_flattened_dict({"optim.learning_rate": 1e-30, "train.steps": 1, "eval.every_steps": 1})
    return saved(run(config, folder), 1)


def assert_equal(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_parameters_and_statistics_are_those_that_the_ancestor_evaluates_with(old, place, tmp_path, capsys):
    theirs = saved(old, STEPS)
    # The statistics move in the first step too, so they are compared where they are frozen.
    config = config_of(place, {"init.run": str(old), "init.freeze": ("norm*",)})
    ours = start(config, tmp_path / "run")
    for name in BODY:
        assert_equal(ours["params"][name], theirs["ema"][name])
    assert_equal(ours["batch_stats"], theirs["ema_stats"])
    assert ours["params"]["output"]["kernel"].shape == (8, 2)
    printed = capsys.readouterr().out
    assert f"starts from step {STEPS} of {old.resolve()}; new for 2 classes: output/bias, output/kernel\n" in printed


def test_a_head_for_as_many_classes_is_kept(old, tmp_path, capsys):
    config = config_of(data_of(tmp_path, 3, seed=2), {"init.run": str(old / "checkpoints" / "9")})
    ours = start(config, tmp_path / "run")
    assert_equal(ours["params"], saved(old, 9)["ema"])
    assert f"starts from step 9 of {old.resolve()}\n" in capsys.readouterr().out


def test_a_sigmoid_head_starts_anew(old, place, tmp_path):
    ours = start(config_of(place, {"init.run": str(old), "model.head": "sigmoid"}), tmp_path / "run")
    assert ours["params"]["output"]["kernel"].shape == (8, 1)
    assert_equal(ours["params"]["dense1"], saved(old, STEPS)["ema"]["dense1"])


def test_an_average_begins_at_the_ancestor(old, place, tmp_path):
    config = config_of(place, {"init.run": str(old), "optim.ema_decay": 0.9})
    ours = start(config, tmp_path / "run")
    np.testing.assert_allclose(ours["ema"]["conv1"]["kernel"], saved(old, STEPS)["ema"]["conv1"]["kernel"], rtol=1e-6)


def test_the_record_names_the_ancestor(old, tuned):
    facts = record(tuned)["ancestor"]
    assert facts.pop("sha256") and facts == {
        "workdir": str(old.resolve()),
        "step": record(old)["reported_step"],
        "data_fingerprint": record(old)["data"]["fingerprint"],
        "config_identity": identity(trained.saved_config.load_config(old)),
    }


def test_a_resume_needs_no_ancestor_and_gives_the_same_bits(old, tuned, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(old, "gone")
    config = config_of(place, {"init.run": "gone"})
    whole = run(config, tmp_path / "whole")
    part = run(config, tmp_path / "part", until=6)
    shutil.rmtree("gone")
    (part / "run.json").unlink()  # The checkpoints know the ancestor too.
    run(config, part)
    assert rows(part) == rows(whole) == rows(tuned) and bits(part, STEPS) == bits(whole, STEPS) == bits(tuned, STEPS)
    assert record(part)["ancestor"] == record(whole)["ancestor"]
    assert record(whole)["ancestor"]["sha256"] == record(tuned)["ancestor"]["sha256"]
    with pytest.raises(UserError, match="gone"):
        run(config, tmp_path / "another")


def test_a_killed_run_continues_with_the_same_bits(run, old, place, tmp_path):
    flags = ["--config=configs/softmax.py"]
    config = config_of(place, {"init.run": str(old), "init.freeze": ("conv*", "norm*"), "train.patience": 100})
    flags += [
        f"--config.{path}={value!r}" if isinstance(value, tuple) else f"--config.{path}={value}"
        for path, value in changed(config).items()
    ]
    assert run(*flags, f"--workdir={tmp_path / 'whole'}").code == 0
    hooks = [["kill_when_on_disk", 2, signal.SIGKILL]]
    assert run(*flags, f"--workdir={tmp_path / 'run'}", hooks=hooks).code == -signal.SIGKILL
    done = run(*flags, f"--workdir={tmp_path / 'run'}")
    assert done.code == 0, done
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    assert bits(tmp_path / "run", STEPS) == bits(tmp_path / "whole", STEPS)
    assert record(tmp_path / "run")["ancestor"] == record(tmp_path / "whole")["ancestor"]
    flags[-1:] = [flags[-1], "--config.parallel.devices=2"]
    for done in run.together(*flags, f"--workdir={tmp_path / 'two'}", processes=2):
        assert done.code == 0, done
    assert record(tmp_path / "two")["ancestor"] == record(tmp_path / "whole")["ancestor"]
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("two", "whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def changed(config):
    """The fields to set on the command line."""
    from imgclf_jax.config import flatten

    given = flatten(config.to_dict())
    names = ("data.", "augment.flip", "model.", "init.", "train.", "eval.", "log.", "optim.")
    return {path: value for path, value in given.items() if path.startswith(names) and value not in (None, "")}


def test_runs_in_one_program_start_from_it_too(old, tuned, place, tmp_path):
    configs = [config_of(place, {"init.run": str(old), "seed": seed}) for seed in range(2)]
    folders = [tmp_path / str(seed) for seed in range(2)]
    assert together.train(configs, folders, [Calls()] * 2) == 0
    assert [row["loss"] for row in rows(folders[0])] == pytest.approx([row["loss"] for row in rows(tuned)], rel=1e-4)
    for folder in folders:
        assert record(folder)["ancestor"] == record(tuned)["ancestor"]


# What is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.widths": (4, 5)}, ["conv2/kernel is 3×3×4×6 there and 3×3×4×5 here", "more differ"]),
        ({"model.norm": "none"}, ["norm1/bias is 4 there and missing here"]),
        (
            {"model.name": "mlp", "model.widths": (), "model.norm": "none"},
            ["dense1/kernel is 24×8 there"],
        ),
        ({"init.run": "nowhere"}, ["init.run=nowhere", "there is no folder nowhere"]),
        ({"init.run": "OLD/checkpoints/5"}, ["no checkpoint of that step", f"9, {STEPS}"]),
        ({"init.run": "OLD/checkpoints"}, ["holds no checkpoint"]),
        ({"init.freeze": ("conv*", "nrom*")}, ["init.freeze='nrom*' matches no parameter", "conv1", "output"]),
        ({"init.freeze": ("*",)}, ["leaves nothing to train"]),
        ({"init.freeze": (3,)}, ["must hold patterns"]),
    ],
)
def test_problems_are_one_line_and_leave_no_folder(old, place, tmp_path, changes, words):
    changes = {"init.run": "OLD"} | changes
    changes["init.run"] = changes["init.run"].replace("OLD", str(old))
    with pytest.raises(UserError) as caught:
        run(config_of(place, changes), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()
    for word in words:
        assert word in str(caught.value)


def test_one_layer_for_other_classes_has_nothing_to_give(place, tmp_path):
    softmax = {"model.name": "softmax", "model.widths": (), "model.hidden": (), "model.norm": "none"}
    old = run(config_of(data_of(tmp_path, 3), softmax), tmp_path / "old")
    with pytest.raises(UserError, match="nothing of that network can be kept"):
        run(config_of(place, softmax | {"init.run": str(old)}), tmp_path / "run")


def test_a_damaged_checkpoint_is_not_replaced_silently(old, place, tmp_path):
    copy = shutil.copytree(old, tmp_path / "old")
    for path in (copy / "checkpoints" / str(STEPS)).rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(UserError, match=r"init\.run"):
        run(config_of(place, {"init.run": str(copy)}), tmp_path / "run")


def test_check_shows_the_ancestor_and_the_identity_depends_on_it(old, place, capsys):
    config = config_of(place, {"init.run": str(old)})
    check(config)
    assert "new for 2 classes" in capsys.readouterr().out
    assert identity(config) != identity(config_of(place))


# Frozen parameters

IMAGES, LABELS = make_data(24)
FROZEN = SMALL_CNN | {
    "model.norm": "batch",
    "init.freeze": ("conv*", "norm1/*", "dense1/bias"),
    "optim.weight_decay": 0.1,
    "optim.decay_mask": "all",
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_frozen_parameters_and_statistics_keep_their_bits(optimizer, accumulate):
    config = make_config(
        FROZEN, {"optim.name": optimizer, "train.batch_size": 6, "train.accumulate": accumulate, "optim.ema_decay": 0.9}
    )
    trainer = Trainer(config, IMAGES, LABELS)
    before = jax.device_get(trainer.init())
    after, _ = trainer.train(trainer.init(), 3)
    for path, old in jax.tree.leaves_with_path({"params": before.params, "stats": before.batch_stats}):
        name = jax.tree_util.keystr(path, simple=True, separator="/").partition("/")[2]
        new = dict(flat(after))[name]
        assert np.array_equal(new, old) == freezing.matches(config.init.freeze, name), name
    np.testing.assert_array_equal(after.ema["conv1"]["kernel"], before.params["conv1"]["kernel"])
    moments = [path for path in freezing.paths(after.opt_state) if "kernel" in path or "bias" in path]
    assert moments and not any("conv" in path for path in moments)


def flat(state: TrainState):
    for tree in (state.params, state.batch_stats):
        for path, leaf in jax.tree.leaves_with_path(tree):
            yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def test_the_rest_trains_as_if_the_frozen_part_were_constant():
    config = make_config(FROZEN, {"init.freeze": ("conv*", "norm*"), "optim.weight_decay": 0.0})
    trainer = Trainer(config, IMAGES, LABELS)
    state, model, images = trainer.init(), trainer.experiment.model, IMAGES[:8]

    def loss(head, fixed):
        variables = {"params": {**fixed, **head}, "batch_stats": state.batch_stats}
        scores = model.apply(variables, trainer.normalization(images / np.float32(255)), train=False)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores), LABELS[:8, None], axis=-1))

    head = {name: state.params[name] for name in ("dense1", "output")}
    expected = jax.grad(loss)(head, state.params)
    step = trainer.experiment.train_step
    batch = {"image": jnp.asarray(images), "label": jnp.asarray(LABELS[:8])}
    from imgclf_jax.rng import step_keys

    after, sums = step(state, batch, trainer.normalization, step_keys(trainer.experiment.key, 0))
    for path, gradient in jax.tree.leaves_with_path(expected):
        old, new = (jax.tree_util.tree_reduce(lambda _, x: x, pick(tree, path)) for tree in (state, after))
        np.testing.assert_allclose(new, old - 0.05 * gradient * 1.9, rtol=1e-3, atol=1e-6)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(expected)))
    assert float(sums["grad_norm"]) == pytest.approx(norm, rel=1e-4)


def pick(state, path):
    tree = state.params
    for key in path:
        tree = tree[key.key]
    return tree


class Stock(nn.Module):
    """Stock layers, with the mode of the normalization in the constructor or in the call."""

    in_call: bool

    @nn.compact
    def __call__(self, x, train):
        if self.in_call:
            return nn.Dense(2)(nn.BatchNorm()(x, not train))
        return nn.Dense(2)(nn.BatchNorm(use_running_average=not train)(x))


@pytest.mark.parametrize("in_call", [False, True])
def test_stock_batch_normalization_normalizes_with_the_statistics_it_keeps(in_call):
    model, x = Stock(in_call), jnp.arange(12.0).reshape(4, 3)
    variables = model.init(jax.random.key(0), x, train=False)
    frozen = freezing.network(model, ("BatchNorm_0",))
    ours, changed = frozen.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(ours, model.apply(variables, x, train=False))
    assert_equal(changed["batch_stats"], variables["batch_stats"])
    theirs, _ = model.apply(variables, x, train=True, mutable=["batch_stats"])
    assert not np.allclose(ours, theirs)


def test_patterns_match_paths_and_their_beginnings():
    for pattern in ("conv1", "conv*", "conv1/kernel", "*/kernel", "block*", "block1/conv1"):
        path = "block1/conv1/kernel" if pattern.startswith("block") else "conv1/kernel"
        assert freezing.matches([pattern], path)
    for pattern in ("conv", "onv1", "conv1/k", "kernel"):
        assert not freezing.matches([pattern], "conv1/kernel")
