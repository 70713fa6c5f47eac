"""tta.py: the mean of the logits over views, beside the plain numbers and as exact as they are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ROOT, SOFTMAX, record
from synthetic import make_config, make_data

from imgclf_jax import augment
from imgclf_jax.augment import tta
from imgclf_jax.data.types import Split
from imgclf_jax.devices import parallel
from imgclf_jax.models import Softmax
from imgclf_jax.training import exact_evaluation, metrics
from imgclf_jax.training.placed import placement
from imgclf_jax.training.steps import make_eval_step
from imgclf_jax.workdir.rows import read_rows

pytest_plugins = ["run_fixtures"]

COUNT = 23
IMAGES, LABELS = make_data(COUNT, (5, 6, 2), classes=3)
DRAWS = np.random.default_rng(0)
KERNEL, BIAS = DRAWS.standard_normal((60, 3)), DRAWS.standard_normal(3)
VARIABLES = {"params": {"output": {"kernel": KERNEL.astype(np.float32), "bias": BIAS.astype(np.float32)}}}
# A mean image: what is subtracted does not move with the image.
NORMALIZATION = augment.Normalization(DRAWS.random((5, 6, 2)).astype(np.float32), np.float32([2, 3]))


def shifted(images, down, right):
    """Images moved by `down` and `right`, one pixel each; pixels from outside are reflections about the edge."""
    rows, columns = np.arange(5) - down, np.arange(6) - right
    rows, columns = (np.abs(np.where(p >= n, 2 * n - 2 - p, p)) for p, n in ((rows, 5), (columns, 6)))
    return images[:, rows][:, :, columns]


def logits(images):
    inputs = (images / 255 - NORMALIZATION.shift) * NORMALIZATION.scale
    return inputs.reshape(len(images), -1) @ KERNEL + BIAS


def mirrored(images):
    return logits(images) / 2 + logits(images[:, :, ::-1]) / 2


def by_numpy(mode):
    """(accuracy, loss) in float64."""
    scores = {"none": logits, "flip": mirrored}.get(mode, lambda images: None)(IMAGES)
    if mode == "flip_shift":
        moved = mirrored(shifted(IMAGES, 1, 1)) / 4 + mirrored(shifted(IMAGES, -1, -1)) / 4
        scores = mirrored(IMAGES) / 2 + moved
    losses = np.log(np.exp(scores).sum(1)) - scores[np.arange(COUNT), LABELS]
    return (scores.argmax(1) == LABELS).mean(), losses.mean()


def crop(images):
    return images.astype(jnp.float32) / 255


def evaluate(mode, batch_size, devices=1, strategy="jit", streamed=False):
    where = {"parallel.devices": devices, "parallel.strategy": strategy}
    layout = parallel.create(make_config(where))._replace(streamed=streamed)
    step = make_eval_step(Softmax(3), crop, views=mode)
    shardings = {"data": placement(layout).evaluation_shardings(layout)}
    run = layout.compile(exact_evaluation.make_evaluate(step, batch_size, layout), shardings=shardings)
    split = placement(layout).place(Split(IMAGES, LABELS, np.arange(COUNT)), layout)
    names = [*metrics.METRICS, *(metrics.TTA if tta.is_on(mode) else ())]
    show = pytest.fail if not streamed else lambda done, total: None
    return exact_evaluation.evaluate_split(run, split, VARIABLES, NORMALIZATION, batch_size, show, names)


def check(result, mode):
    (accuracy, loss), (own_accuracy, own_loss) = by_numpy("none"), by_numpy(mode)
    assert result == {
        "accuracy": accuracy,
        "loss": pytest.approx(loss, rel=1e-5),
        "tta_accuracy": own_accuracy,
        "tta_loss": pytest.approx(own_loss, rel=1e-5),
        "correct": round(accuracy * COUNT),
        "count": COUNT,
        "not_finite": 0,
    }


def test_the_modes_differ():
    # Or the comparisons below would say little.
    assert len({by_numpy(mode) for mode in tta.WEIGHTS}) == 3


@pytest.mark.parametrize("mode", ["flip", "flip_shift"])
@pytest.mark.parametrize("batch_size", [1, 4, COUNT, 64])
def test_the_numbers_are_those_of_written_out_views_for_any_batch_size(mode, batch_size):
    check(evaluate(mode, batch_size), mode)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("strategy", ["jit", "pmap", "shard_map"])
def test_the_numbers_are_the_same_on_eight_devices(strategy, streamed):
    check(evaluate("flip_shift", 8, 8, strategy, streamed), "flip_shift")


def test_without_views_there_are_no_more_numbers():
    assert evaluate("none", 8).keys() == {"accuracy", "loss", "correct", "count", "not_finite"}


@pytest.mark.parametrize("mode", ["flip", "flip_shift"])
def test_the_network_sees_each_view_once(mode):
    images = jnp.asarray(IMAGES, jnp.float32) / 255
    seen, weights = tta.views(images, mode)
    assert len(seen) == len(weights) == len(np.unique(np.asarray(seen), axis=0))
    np.testing.assert_array_equal(seen[0], images)
    assert weights.sum() == 1


def test_an_image_without_finite_logits_in_a_view_is_wrong_there_alone():
    # The mirror image of a white left edge is a white right edge, for which the network has no finite logits.
    images = np.zeros((4, 3, 3, 1), np.uint8)
    images[1:, :, 0] = 255
    kernel = np.zeros((9, 3), np.float32)
    kernel[2::3, 1] = 3e38

    step = jax.jit(make_eval_step(Softmax(3), lambda images: 4 * crop(images), views="flip"))
    variables = {"params": {"output": {"kernel": kernel, "bias": np.float32([1, 0, 0])}}}
    batch = {"image": images, "label": np.zeros(4, np.int32), "mask": np.ones(4, bool)}
    sums = step(variables, augment.Normalization(np.float32(0), np.float32(1)), batch)
    assert (int(sums["accuracy"]), int(sums["tta_accuracy"]), int(sums["not_finite"])) == (4, 1, 0)


# Whole runs

FLAGS = (*SOFTMAX, "--config.eval.every_steps=2")


@pytest.fixture(scope="module")
def complete(run, tmp_path_factory):
    """(folder, what was printed, folder of the same run without it)."""
    place = tmp_path_factory.mktemp("tta")
    done = run(*FLAGS, "--config.eval.tta=flip_shift", f"--workdir={place / 'run'}")
    assert done.code == 0, done.err
    plain = run(*FLAGS, f"--workdir={place / 'plain'}")
    assert plain.code == 0, plain.err
    return place / "run", done.out, place / "plain"


def test_results_rows_and_lines_have_both_numbers(complete):
    folder, out, without = complete
    results, plain = record(folder)["results"], record(without)["results"]
    added = {"tta_accuracy", "tta_loss"}
    assert [results[split].keys() - plain[split].keys() for split in results] == [set(), added, added]
    for split, result in plain.items():
        assert results[split]["correct"] == result["correct"]
        assert results[split]["loss"] == pytest.approx(result["loss"], rel=1e-6)
    test = results["test"]
    assert test["tta_loss"] != test["loss"]
    assert re.search(
        rf"^test accuracy .* tta_accuracy {test['tta_accuracy']:.4f}  tta_loss {test['tta_loss']:.4f}", out, re.M
    )
    values = {(row["split"], row["step"]): row["tta_accuracy"] for row in read_rows(folder) if row["split"] != "train"}
    assert values == {("valid", 2): None, ("valid", 4): None, ("test", 4): test["tta_accuracy"]}
    assert "tta_accuracy" not in read_rows(without)[0]


def test_a_complete_run_keeps_its_results_and_is_evaluated_with_it_on_request(run, complete):
    folder, _, without = complete
    before = (without / "run.json").read_bytes()
    flags = [*FLAGS, "--config.eval.tta=flip_shift", f"--workdir={without}"]
    done = run(*flags)
    assert done.code == 0 and "eval.tta=none; add --mode=eval" in done.out, done
    assert (without / "run.json").read_bytes() == before
    done = run(*flags, "--mode=eval")
    assert done.code == 0 and f"tta_accuracy {record(folder)['results']['test']['tta_accuracy']:.4f}" in done.out, done
    assert "tta_accuracy" not in run("--mode=eval", f"--workdir={without}").out


def test_the_report_shows_it(complete):
    from imgclf_jax.report import facts, runs

    (shown,) = runs.read([complete[0]], lambda *arguments: None)
    test = shown.record["results"]["test"]
    table = str(facts.results(shown))
    assert f"{test['tta_accuracy']:.4f}" in table and f"{test['tta_loss']:.4f}" in table and "–" in table


def test_an_unknown_mode_is_one_line(run, complete):
    for flags in ([], ["--mode=eval"]):
        done = run(*FLAGS, "--config.eval.tta=mirror", f"--workdir={complete[0]}", *flags, cwd=ROOT)
        assert done.code == 2 and len(done.err.splitlines()) == 1
        assert "eval.tta='mirror' is unknown; give --config.eval.tta=none (or flip, flip_shift)" in done.err
