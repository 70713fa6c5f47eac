"""`--mode=eval`: the accuracy of a run's checkpoint on any split."""

import functools
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from imgclf_jax import data
from imgclf_jax.data import splits
from imgclf_jax.devices import parallel, processes, xla
from imgclf_jax.errors import UserError
from imgclf_jax.terminal.console import Console
from imgclf_jax.training import exact_evaluation, trained
from imgclf_jax.training.placed import placement
from imgclf_jax.training.summary import accuracy, own_metrics
from imgclf_jax.training.validate import for_evaluation
from imgclf_jax.workdir import saved_config


def evaluate_run(config: ConfigDict, folder: Path, split: str, which: str) -> dict[str, float | int]:
    """Evaluates a checkpoint of the run in a workdir and prints the result.

    Args:
        config: the run's config.
        folder: its workdir.
        split: "train", "valid" or "test" for a split of the config, or any split in TFDS syntax.
        which: "last" or "best" (by validation accuracy).

    Returns:
        See `imgclf_jax.training.exact_evaluation.result`.

    Raises:
        UserError: there is no checkpoint or no such split, the checkpoint is of another model, or a setting is invalid.
    """
    trained.check(folder)
    if problems := processes.together(lambda: for_evaluation(config)):
        raise UserError("\n".join(problems))
    console = Console(config.log.progress if processes.is_first() else "silent")
    info = processes.together(lambda: data.describe_split(config.data, split))
    strategy = parallel.create(config, info.image_bytes)
    dataset = processes.first_alone(
        lambda: data.load_split(config.data, split, progress=console.task, stream=strategy.streamed)
    )
    console.finish()
    if dataset.notice:
        console.warn(dataset.notice)
    if line := placement(strategy).notice(config, info):
        console.print(line)
    shared = processes.first_alone(lambda: trained_on(config, folder, split, info, dataset))
    network = trained.load(folder, which, config, strategy)
    trained.check_classes(network, dataset)
    with xla.quiet():
        result = exact_evaluation.evaluate_split(
            network.experiment.compile_evaluate(tta=True),
            network.experiment.place(dataset.splits[split]),
            network.variables,
            strategy.put(network.normalization),
            config.eval.batch_size,
            functools.partial(console.task, f"evaluating {split}"),
            network.experiment.evaluated(tta=True),
        )
    console.finish()
    console.emit({"step": network.step, "split": split, **result, "data": dataset.name, "workdir": str(folder)})
    console.result(
        f"step {network.step}  {split} accuracy {accuracy(result)}  loss {result['loss']:.4f}{own_metrics(result)}"
        f"  on {dataset.name}"
        + (f"; {shared:,} of these {result['count']:,} examples are in the training split" if shared else "")
    )
    return result


def trained_on(config: ConfigDict, folder: Path, split: str, info: data.Info, dataset: data.Dataset) -> int:
    """Returns how many of the examples to evaluate are in the run's training split.

    Returns 0 for "train" itself, for which the overlap is obvious, and for a data set other than the run's.

    Args:
        config: the config of the evaluation.
        folder: the workdir of the run.
        split: the split to evaluate.
        info: its description.
        dataset: its examples.
    """
    if split == "train":
        return 0
    saved = saved_config.load_config(folder).data
    if saved.name != config.data.name:
        return 0  # Another data set need not even have the training split of the run.
    named = splits.are_expressions(saved) and splits.are_expressions(config.data)
    if not named:
        same = [saved[name] == config.data[name] for name in ("split", "folds", "fold")]
        if all(same) or (same[0] and split == "test") or saved.source != config.data.source:
            return 0  # The splits of one's own data are disjoint.
    settings = config.data.copy_and_resolve_references()
    settings.update(labels="")
    if named:
        settings.update(train_split=saved.train_split, valid_split="", test_split="", folds=0, fold=0)
    if named and not saved.folds and "train" in info.split_ranges:
        return splits.common(data.describe(settings).split_ranges["train"], info.split_ranges["train"])
    # The examples of folds are scattered, so they are compared by their ids. Nothing is decoded to read these.
    if named:
        settings.update(valid_split=saved.valid_split)
    settings.update(split=saved.split, folds=saved.folds, fold=saved.fold)
    training = data.load_split(settings, "train", stream=True).splits["train"].ids
    return int(np.isin(dataset.splits[split].ids, training).sum())
