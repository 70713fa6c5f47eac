"""`--mode=eval`: the accuracy of a run's checkpoint on any split."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import checkpoint, compiler, data, evaluate, hosts, inputs, parallel, workdir
from imgclf_jax.console import Console
from imgclf_jax.errors import UserError
from imgclf_jax.experiment import build, compile_evaluate, template
from imgclf_jax.summary import accuracy
from imgclf_jax.validate import plan as make_plan


def evaluate_run(config: ConfigDict, folder: Path, split: str, which: str) -> dict[str, float | int]:
    """Evaluates a checkpoint of the run in a workdir and prints the result.

    Args:
        config: the run's config.
        folder: its workdir.
        split: "train", "valid" or "test" for those of the config, or any split in TFDS syntax.
        which: "last" or "best" (by validation accuracy).

    Returns:
        `accuracy`, `loss`, `correct` and `count`.

    Raises:
        UserError: no checkpoint, no such split, a checkpoint of another model.
    """
    counts = ((workdir.read_json(folder / "run.json") or {}).get("data") or {}).get("counts")
    if not checkpoint.exists(folder) or not counts:
        raise UserError(f"{folder} holds no checkpoint; give the workdir that training printed")
    spec = {"train": config.data.train_split, "valid": config.data.valid_split, "test": config.data.test_split}.get(
        split, split
    )
    if not spec:
        raise UserError(f"data.{split}_split of this run is empty; name another split, such as --split=train")
    # Only what is asked for is read: the statistics of the training split come with the checkpoint. It goes by the
    # name of "train" because that is the split that a data set must have.
    data_config = config.data.copy_and_resolve_references()
    data_config.update(train_split=spec, valid_split="", test_split="")
    data.describe(data_config)

    console = Console(config.log.progress if hosts.is_first() else "silent")
    dataset = hosts.first_alone(lambda: data.load(data_config, progress=console.task))
    console.finish()
    if dataset.notice:
        console.warn(dataset.notice)
    with compiler.quiet():
        step, result = _evaluate(config, folder, which, counts, dataset)
    console.print(f"step {step}  {spec} accuracy {accuracy(result)}  loss {result['loss']:.4f}  on {dataset.name}")
    return result


def _evaluate(config, folder, which, counts, dataset):
    strategy = parallel.create(config.parallel, sum(split.images.nbytes for split in dataset.splits.values()))
    plan = make_plan(config, counts)
    blank = np.zeros((1, *dataset.image_shape), np.uint8)
    normalize = inputs.normalization(config.data.pixels, blank, tuple(config.augment.crop))

    def experiment(normalize):
        return build(config, plan, dataset.image_shape, len(dataset.class_names), normalize, strategy)

    checkpoints = checkpoint.Checkpoints(folder, read_only=True)
    step = checkpoints.best() if which == "best" else checkpoints.steps()[-1]
    if step is None:
        raise UserError(f"{folder} has no best checkpoint, for it was trained without a validation split; use last")
    saved = checkpoints.restore(step, template(experiment(normalize), normalize, strategy))
    checkpoints.close()
    examples = dataset.splits["train"]
    run = compile_evaluate(experiment(inputs.Normalization(**saved["inputs"])), strategy)
    count = len(examples.labels)
    resident = strategy.put_examples((examples.images, examples.labels))
    sums = run(saved["state"].eval_variables(), *resident, jnp.int32(count))
    return step, evaluate.result(jax.device_get(sums), count)
