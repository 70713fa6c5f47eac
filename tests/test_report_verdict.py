"""report/verdict.py: what is said about known situations, and what is advised."""

import numpy as np
import pytest

from imgclf_jax import config as configs
from imgclf_jax.report import verdict

FALLING = [2.0, 1.6, 1.3, 1.0, 0.7, 0.4]
RISING = [2.0, 1.5, 1.2, 1.5, 1.9, 2.4]
HELD = [0.3, 0.5, 0.6, 0.61, 0.6, 0.6]
EQUAL = np.array([50, 50])


def rows(losses, accuracies, train=None, learned=None, split="valid"):
    """A row an epoch of 10 steps; `train` and `learned` are the training losses and accuracies."""
    found = []
    for index, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
        at = {"step": 10 * (index + 1), "epoch": float(index + 1)}
        if train:
            known = learned[index] if learned else accuracy
            found.append({**at, "split": "train", "loss": train[index], "accuracy": known})
        found.append({**at, "split": split, "loss": loss, "accuracy": accuracy})
    return found


def judge(*given, count=5000, config=None, **more):
    return verdict.judge(rows(*given), config or configs.default(), count, **more)


# name: (curves, other arguments, kinds, what is said, what is not said, a flag that is advised)
SITUATIONS = {
    "overfitting": ((RISING, HELD, FALLING), {}, {"overfitting"}, "Accuracy held", "unsteady", "augment.flip=true"),
    "overfitting, and accuracy falls": (
        (RISING, [0.3, 0.5, 0.7, 0.65, 0.6, 0.5], FALLING),
        {},
        {"overfitting"},
        "Accuracy fell as well, to 0.5000",
        "Accuracy held",
        "train.patience=5",
    ),
    "a gap and a level loss": (
        (
            [1.0, 0.8, 0.79, 0.8, 0.79, 0.8],
            [0.6, 0.74, 0.74, 0.74, 0.74, 0.74],
            FALLING,
            [0.6, 0.7, 0.8, 0.9, 0.93, 0.94],
        ),
        {},
        {"level", "overfitting"},
        "0.94 of the training images (as they were seen in training) but on 0.74",
        "no clear sign",
        "augment.policy=trivial_augment",
    ),
    "a gap in the results": (
        ([1.0, 0.8, 0.79, 0.8, 0.79, 0.8], [0.6, 0.74, 0.74, 0.74, 0.74, 0.74]),
        {"results": {"train": {"accuracy": 0.94}, "valid": {"accuracy": 0.74}}},
        {"level", "overfitting"},
        "0.94 of the training images but on 0.74 of the validation images, a gap of 0.20",
        "no clear sign",
        "weight_decay",
    ),
    "a rise of both losses": (
        (RISING, [0.3, 0.5, 0.6, 0.5, 0.4, 0.3], [2.0, 1.6, 1.3, 1.5, 1.9, 2.3]),
        {},
        {"unsteady"},
        "unsteady training",
        "this is overfitting",
        "optim.learning_rate=",
    ),
    "still improving": (
        ([2.0, 1.8, 1.6, 1.4, 1.2, 1.0], [0.2, 0.3, 0.4, 0.5, 0.6, 0.7], FALLING),
        {},
        {"improving"},
        "fell at every evaluation",
        "overfitting",
        "train.epochs=",
    ),
    "falls by little at every evaluation": (
        ([0.70, 0.698, 0.696, 0.694, 0.692], [0.52, 0.54, 0.53, 0.54, 0.54]),
        {"count": 100},
        {"improving"},
        "fell at every evaluation",
        "no more than noise",
        "train.epochs=",
    ),
    "two evaluations": (
        ([0.7, 0.69], [0.6, 0.6]),
        {"count": 100},
        {"improving"},
        "fell at every evaluation",
        "no more than noise",
        "train.epochs=",
    ),
    "gains below noise": (
        ([2.0, 1.2, 1.19, 1.195, 1.185, 1.19], [0.3, 0.6, 0.601, 0.604, 0.6, 0.602], FALLING),
        {},
        {"level"},
        "After epoch 2, it improved by no more than noise",
        "this is overfitting",
        "model.name=resnet18",
    ),
    "nothing learned": (
        ([0.7, 0.69, 0.69], [0.5, 0.51, 0.5]),
        {"count": 100, "support": EQUAL, "recall": np.array([1.0, 0.0]), "names": "ab"},
        {"chance"},
        "next to nothing: always guessing the most frequent class is right for 0.5000",
        "longer training",
        "optim.learning_rate=0.001",
    ),
    "unequal classes": (
        ([1.0, 0.5, 0.51, 0.5, 0.51, 0.5], [0.92, 0.95, 0.95, 0.95, 0.95, 0.95]),
        {"support": np.array([900, 100]), "recall": np.array([1.0, 0.5]), "names": ("cat", "dog")},
        {"level", "unequal"},
        "cat has 900 of the 1,000 examples, dog 100. The accuracy is mostly about the large classes; the mean of the "
        "accuracies of the classes is 0.7500, and that of dog is 0.5000",
        "next to nothing",
        "loss.class_weights=balanced",
    ),
    "one evaluation": (([1.0], [0.5]), {}, {"unknown"}, "only once, at epoch 1", "overfitting", "eval.every_epochs=1"),
    "a loss that is not finite": (
        ([1.0, None], [0.5, None]),
        {},
        {"unknown"},
        "only once",
        "overfitting",
        "eval.every_epochs=1",
    ),
    "no evaluation": (([], []), {}, {"unknown"}, "not been evaluated yet", "noise", "eval.every_epochs=1"),
    "no validation": (([], []), {"count": 0}, {"unknown"}, "no validation split", "noise", "valid_split='train[90%:]'"),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_known_situations(name):
    curves, more, kinds, said, unsaid, flag = SITUATIONS[name]
    config = configs.default()
    config.update_from_flattened_dict({"optim.learning_rate": 0.01, "train.epochs": 6.0, "model.name": "cnn"})
    found = judge(*curves, config=config, **more)
    assert found.kinds == kinds, found.text
    assert said in found.text and unsaid not in found.text, found.text
    assert any(flag in advice.flags for advice in found.advice), found.advice


def test_every_flag_that_is_advised_is_accepted():
    for curves, more, *_ in SITUATIONS.values():
        config = configs.default()
        config.update_from_flattened_dict({"train.epochs": 6.0})
        for advice in judge(*curves, config=config, **more).advice:
            for flag in filter(None, advice.flags.split("--config.")):
                path, _, value = flag.strip().partition("=")
                assert path in configs.flatten(config.to_dict()), path
                assert value


def test_what_is_done_already_is_not_advised():
    config = configs.default()
    config.update_from_flattened_dict({"augment.flip": True, "augment.policy": "rand_augment", "train.patience": 3})
    flags = " ".join(advice.flags for advice in judge(RISING, HELD, FALLING, config=config).advice)
    assert "augment" not in flags and "patience" not in flags and "weight_decay" in flags


def test_the_same_rise_is_noise_on_few_images_and_none_on_many():
    once = [2.0, 1.2, 1.25, 1.25, 1.25, 1.28], [0.3, 0.6, 0.6, 0.6, 0.6, 0.6], FALLING
    assert "overfitting" not in judge(*once, count=100).kinds
    assert "overfitting" in judge(*once, count=50_000).kinds
