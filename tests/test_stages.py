"""training/stages.py: which program takes which step, and runs whose images change their size."""

import signal

import jax.numpy as jnp
import numpy as np
import pytest
from runs import bits

from imgclf_jax.config import default
from imgclf_jax.training import stages
from imgclf_jax.training.stages import Stage

pytest_plugins = ["run_fixtures"]

STAGED = (
    "--config=configs/speedrun94_fast.py",
    "--config.data.source=sample",
    "--config.model.dtype=float32",
    "--config.model.widths=(8,8)",
    "--config.model.options.logit_scale=0.125",
    "--config.train.batch_size=16",
    "--config.train.epochs=0",
    "--config.train.steps=7",
    "--config.optim.freeze_after=(('whiten/bias', 0.02),)",
    "--config.optim.lookahead_every=2",
    "--config.optim.lookahead_from=0.0",
    "--config.augment.sizes=(16, 24)",
    "--config.eval.tta=none",
)


def config(sizes):
    found = default()
    found.augment.sizes = sizes
    return found


def test_one_stage_if_nothing_changes():
    assert stages.stages(config(()), 10) == (stages.WHOLE,)
    assert stages.stages(config((24,)), 10) == (Stage(0, 24),)


def test_sizes_and_frozen_parameters_divide_a_run():
    found = stages.stages(config((24, 24, 32)), 9, [(2, "a"), (6, "b"), (9, "c")])
    assert found == (Stage(0, 24), Stage(2, 24, ("a",)), Stage(6, 32, ("a", "b")))
    assert [stages.at(found, step).first for step in (0, 1, 2, 5, 6, 8)] == [0, 0, 2, 2, 6, 6]


def test_images_are_resized_as_pytorch_does():
    """Bilinear, without a filter, aligned at the corners of the pixels; for 8 to 6: weights of 5/6 and 1/6 first."""
    images = jnp.arange(8.0).reshape(1, 1, 8, 1) * jnp.ones((1, 8, 1, 1))
    found = stages.resized(lambda images: images, 6)(images)
    assert found.shape == (1, 6, 6, 1)
    np.testing.assert_allclose(found[0, 0, :, 0], (np.arange(6) + 0.5) * 8 / 6 - 0.5, rtol=1e-5)
    assert stages.resized(len, 0) is len


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("augment.sizes", (2, 32), "with 2 rows"),
        ("data.pixels", "mean_image", "needs an image of each size"),
        ("model.name", "mlp", "must not depend on the size"),
    ],
)
def test_what_does_not_work_is_one_line(field, value, line):
    wrong = config((24, 32))
    wrong.model.name = "speednet"
    wrong.model.options.pool = "global"
    section, name = field.split(".")
    wrong[section][name] = value
    if name == "name":
        wrong.model.options = {}
    problems = stages.problems(wrong, (32, 32, 3), 10)
    assert len(problems) == 1
    assert line in problems[0]


def test_a_run_in_stages_continues_with_the_same_bits(run, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run(*STAGED, f"--workdir={whole}")
    assert (done.code, done.err) == (0, "")
    arguments = *STAGED, f"--workdir={killed}", "--config.checkpoint.every_steps=2"
    assert run(*arguments, hooks=[["kill_when_on_disk", 2, signal.SIGKILL]]).code == -signal.SIGKILL
    assert run(*arguments).code == 0
    assert bits(killed, 7) == bits(whole, 7)
