"""Every config field with its type and default: the one place to look them up.

A config file defines `get_config()`, which starts from `default()` and changes the fields of its experiment::

    from imgclf_jax.config import default

    def get_config():
        config = default()
        config.model.name = "mlp"
        config.train.epochs = 10
        return config

Any field can be overridden on the command line (`--config.train.epochs=3`, `--config.augment.crop="(24, 24)"`).
An unknown field is rejected, with the closest known one as a suggestion. `imgclf_jax.training.validate` checks the
values.
"""

import difflib
import hashlib
import json
from typing import Any

from ml_collections import ConfigDict, config_dict

from imgclf_jax import components
from imgclf_jax.errors import UserError


def is_on(value: Any) -> bool:
    """Whether the value of a field is not 0, False, empty or missing.

    The value may be traced: of several runs in one program, all have something else than 0.
    """
    return bool(value) if isinstance(value, int | float | tuple | None) else True


def default() -> ConfigDict:
    """Returns a complete, locked config. Fields that are empty by default (`placeholder`) are durations or limits.

    Give a duration in steps or in epochs, never both: `train.steps` or `train.epochs`, `eval.every_steps` or
    `eval.every_epochs`, and so on. 0 counts as not given, so that the command line can change the unit:
    `--config.train.epochs=0 --config.train.steps=100`.
    """
    config = ConfigDict(
        {
            # The experiment's only source of randomness: initialization, order, augmentation, dropout.
            "seed": 0,
            "data": _data(),
            "augment": _augment(),
            "model": _model(),
            "loss": _loss(),
            # Your own metrics, "module:name": (logits float32 [B, classes], labels int32 [B]) -> float32 [B]. Their
            # means join the loss and the accuracy under their names.
            "metrics": (),
            "init": _init(),
            "optim": _optim(),
            "train": _train(),
            "eval": _eval(),
            "log": _log(),
            "checkpoint": _checkpoint(),
            "parallel": _parallel(),
        }
    )
    config.lock()
    for path in FREE:
        section, name = path.split(".")
        config[section][name].unlock()
    return config


# Sections whose keys are not fixed: keyword arguments of the part that the field beside them names.
FREE = ("model.options", "optim.options", "optim.schedule_options", "loss.options", "data.options")


def _data() -> dict[str, Any]:
    return {
        # A TFDS image classification data set with `image` and `label`: cifar10, cifar100, mnist, fashion_mnist, ...
        "name": "cifar10",
        # "tfds": the prepared data set, downloaded and prepared if missing. "sample": the bundled part of CIFAR-10.
        # "folder", "csv", "tar", "arrays": your own data, in data.dir; data.name and the splits below do not apply.
        # "module:name": a function of yours; see imgclf_jax/data/own.py.
        "source": "tfds",
        # Keyword arguments of your own source.
        "options": {},
        # Folder of the TFDS data sets; empty: $TFDS_DATA_DIR, or ~/tensorflow_datasets. With source "folder": the
        # folder with train/CLASS/*, validation/CLASS/* and test/CLASS/*, or with CLASS/*, which data.split divides.
        # "csv": a .csv file that lists photos: columns path (relative to the file), label and, unless data.split
        # divides them, split (train, valid or test). "tar": a folder of .tar files with KEY.jpg and KEY.cls or
        # KEY.json, see imgclf_jax/data/tar. "arrays": a .npz file; a folder with train.npz, valid.npz and test.npz; or
        # one with images.npy and labels.npy, or train_images.npy, train_labels.npy, valid_images.npy and so on; see
        # imgclf_jax/data/arrays.
        "dir": "",
        # A file with other labels for the training split, such as noisy ones; validation and test keep their own.
        # .npy: an int for each original example of the stored split, by the number at the end of its id. .csv:
        # columns id and label; examples that are not listed keep their label. Empty: none.
        "labels": "",
        # An archive that you have already downloaded, or the folder of them if the data set has several.
        "archive": "",
        # Another URL to download the archive from. Checksums are still verified.
        "url": "",
        # False: never touch the network.
        "download": True,
        # If the full data set is not available, train on the bundled sample (CIFAR-10 only), with a prominent notice.
        "allow_sample": True,
        # TFDS split syntax. Validation examples are taken from the training split. "": no such split. Your own data
        # have splits of their own, and a line says so if these fields are not at their defaults.
        "train_split": "train[:45000]",
        "valid_split": "train[45000:]",
        "test_split": "test",
        # Fractions for training, validation and test if your own data are not split: photos in CLASS/* only, a .csv
        # file without a column split, one array of images. Each class is divided by the content of its images, the
        # same way on every machine. A class with at least three different images is in every split.
        "split": (0.7, 0.15, 0.15),
        # Cross-validation: the training and validation examples together are dealt to this many folds, class by class
        # and the same way for every seed and on every machine. 0: none.
        "folds": 0,
        # The fold that is the validation split, from 0 to folds - 1; the other folds are the training split.
        "fold": 0,
        # (height, width) that images are resized to when decoded. Empty: not resized; photos get (32, 32).
        "image_size": (),
        # "stretch" changes the aspect ratio; "crop" fits the shorter side and takes the middle of the longer one.
        "resize": "stretch",
        # Unreadable photos, and images that are in two splits or classes: "error" lists all of them and stops, "skip"
        # leaves them out. Arrays that are already split are only warned about.
        "on_bad": "error",
        # How photos that stay on disk are examined before training. "decode": each is decoded once, which finds all
        # damaged ones and copies. "read": each is read, which finds copies of files, and files that do not begin or end
        # like a photo; training stops at one that is damaged otherwise. "auto": "read" above 100,000 photos.
        "examine": "auto",
        # Most bytes of images, as uint8, that a device may hold. Larger data sets stay on disk; worker processes
        # decode them and stream them to the device. 0: half of the device's memory.
        "max_device_bytes": 0,
        # Worker processes that decode streamed images. 0: threads of this process.
        "workers": 2,
        # What the network sees: "unit": [0, 1]. "standardized": minus the training split's mean color, divided by
        # its standard deviation. "mean_image": 0 to 255 minus the training split's mean image.
        "pixels": "unit",
    }


def _augment() -> dict[str, Any]:
    return {
        # All operations act on images in [0, 1], in the order listed here, with independent draws for each image (for
        # mixup and cutmix: for each batch). After saturation the result is clipped to [0, 1].
        # Largest angle, 0 to 180 degrees. This and the fields up to zoom are one resampling; see
        # imgclf_jax/augment/affine.py.
        "rotation": 0.0,
        # Largest shifts, as fractions of the width and the height, below 1.
        "width_shift": 0.0,
        "height_shift": 0.0,
        # Largest angle by which the vertical axis is tilted, below 90 degrees (Keras's shear_range).
        "shear": 0.0,
        # (lowest, highest) factor, drawn for each axis; above 1 objects get smaller (Keras's zoom_range). Empty: off.
        # A single number is not accepted: for Keras's zoom_range=z, write (1 - z, 1 + z).
        "zoom": (),
        # What to fill in from outside the image: "constant" (0), "nearest" (its border), "reflect" or "wrap".
        "fill_mode": "nearest",
        # (height, width) of a random window; evaluation takes the central one. Empty: the whole image.
        "crop": (),
        # (least, largest) fraction of the image's area in a random window, such as (0.08, 1.0). Its width / height is
        # drawn from 3/4 to 4/3, and it is resampled to the size of crop. Empty: off.
        "random_resized_crop": (),
        # Pixels added on each side before the window is drawn; pad_mode is "reflect" or "zero".
        "pad": 0,
        "pad_mode": "reflect",
        # Mirror left and right with probability 1/2.
        "flip": False,
        # "random": a new draw each time. "alternating": a draw in the first epoch, the other direction in the next one.
        "flip_mode": "random",
        # "trivial_augment": one random operation of random strength. "rand_augment": policy_operations of them in turn,
        # all of strength policy_magnitude, 0 to 30. Both with the operations and ranges of torchvision; see
        # imgclf_jax/augment/policies.py. "none": off.
        "policy": "none",
        "policy_operations": 2,
        "policy_magnitude": 9,
        # Largest hue shift as a fraction of the hue circle, 0 to 0.5.
        "hue": 0.0,
        # (lowest, highest) factor about the per-channel mean. Empty: off.
        "contrast": (),
        # Largest amount added to every pixel.
        "brightness": 0.0,
        # (lowest, highest) factor on the saturation. Empty: off.
        "saturation": (),
        # Side of the blanked square, in pixels. 0: off.
        "cutout": 0,
        # Probability that a rectangle of 2 to 33 % of the image is erased: erasing_fill is "zero" (black) or "noise".
        "random_erasing": 0.0,
        "erasing_fill": "zero",
        # Mix pairs of images of the batch, and their targets, with a weight from Beta(alpha, alpha), drawn for each
        # batch: the alpha of mixup (all pixels, often 0.2) and of CutMix (a box from the partner, often 1.0). 0: off.
        # If both are on, each batch gets one of them with probability 1/2. The training accuracy is then that for the
        # label with the largest weight; the lower label if there are two.
        "mixup": 0.0,
        "cutmix": 0.0,
        # Rows of the images in equal parts of the run, such as (24, 28, 32): after the operations above, they are
        # resized to so many. Evaluation always sees them in full size. Empty: so does training.
        "sizes": (),
        # Your own functions, "module:name", after all others: (key, image) -> image for one image float32 [H, W, C] in
        # [0, 1]; or (keys [B], images, targets float32 [B, classes]) -> (images, targets) for a device's share of a
        # batch, after mixing.
        "extra": (),
    }


def _model() -> dict[str, Any]:
    return {
        # A model of imgclf_jax.models, such as mlp, cnn or resnet18; or "module:name" of your own, a Flax Linen class
        # (or a function that returns an instance): images float32 [B, H, W, C] -> logits [B, classes].
        "name": "cnn",
        # Keyword arguments of the model that the fields below do not cover.
        "options": {},
        # "softmax": one logit per class. "sigmoid": one logit, for the second of two classes. "auto": sigmoid for two
        # classes, softmax for more; run.json has what it was.
        "head": "softmax",
        # Precision of the layers: float32 or bfloat16. Parameters and the loss stay float32.
        "dtype": "float32",
        # Output channels of the convolutions. Empty: the model's default.
        "widths": (),
        # Units of the dense layers before the output layer. Empty: the model's default.
        "hidden": (),
        # "batch": batch normalization, in the plain networks after the pooling of each convolution; "none"; residual
        # networks also have "group", and batch normalization by default.
        "norm": "none",
        # Fraction of the last hidden layer's units dropped in training. Not given: the model's default.
        "dropout": config_dict.placeholder(float),
    }


def _loss() -> dict[str, Any]:
    return {
        # "cross_entropy"; "binary_cross_entropy": one decision for each class, summed; "focal"; or "module:name" of
        # your own: (logits float32 [B, classes], targets float32 [B, classes]) -> float32 [B]. Evaluation always
        # reports the cross-entropy.
        "name": "cross_entropy",
        # Keyword arguments of the loss, such as gamma of "focal".
        "options": {},
        # Factors of the examples by their class: "", "balanced" (inversely to the number of training examples, 1 on
        # average) or one number for each class, such as "1, 2.5".
        "class_weights": "",
    }


def _init() -> dict[str, Any]:
    return {
        # Start from a trained network: the workdir of a run (its reported checkpoint) or one checkpoint of it,
        # DIR/checkpoints/STEP. Parameters and normalization statistics are taken over, averages if it has them. An
        # output layer for another number of classes starts anew. Empty: start from random parameters.
        "run": "",
        # Parameters that keep the values they start from, as patterns of their paths or of a beginning of these:
        # "conv1" is all of conv1, "conv*" every layer named so, "*/bias" each bias. A batch normalization layer whose
        # statistics match (norm1/mean, norm1/var) keeps them, and normalizes with them in training too.
        "freeze": (),
    }


def _optim() -> dict[str, Any]:
    return {
        # sgd, adam, adamw, rmsprop, muon or muon_sgd (Muon for the kernels of convolutions, whose norms are set, and
        # SGD for all else); or "module:name" of a function that returns an optax.GradientTransformation, such as
        # "optax:lion". It gets the learning rate, as a schedule, and the options; weight_decay and clip_norm are
        # applied to the gradient before, and the other fields of ours do not apply.
        "name": "sgd",
        # Keyword arguments of an optimizer of your own, or of muon_sgd; see imgclf_jax/training/muon_sgd.py.
        "options": {},
        # Peak of the schedule.
        "learning_rate": 0.1,
        # Pairs (pattern, factor) of parameters with another learning rate, with patterns as in init.freeze, such as
        # (("*/bias", 64.0), ("output", 0.1)). The first pattern that matches counts. The decay of the weights in a step
        # stays the same: the weight decay of these parameters is divided by the factor.
        "factors": (),
        # Pairs (pattern, epochs) of parameters that stop training, with patterns as in init.freeze, such as
        # (("conv1", 3.0),). Their learning rate does not follow the schedule: it falls linearly to 0, and from then on
        # they are frozen. Of several patterns that match, the one with the fewest epochs counts.
        "freeze_after": (),
        # constant, linear, cosine, exponential (the last three fall to final_fraction of the peak), one_cycle, step or
        # knots.
        # Or "module:name" of a function that returns int step -> learning rate; it gets the options below and, if it
        # takes them, the number of steps and the learning rate above as `steps` and `peak`.
        "schedule": "constant",
        # Keyword arguments of a schedule of your own.
        "schedule_options": {},
        "final_fraction": 0.0,
        # For step: at each of these fractions of the run, the learning rate is multiplied by decay_factor (He et al.
        # 2016). The warm-up is part of the run.
        "milestones": (0.5, 0.75),
        "decay_factor": 0.1,
        # For knots: pairs (fraction of the run, factor), such as ((0, 0.2), (0.25, 1.0), (1, 0.0)). The learning rate
        # is linear between them.
        "knots": (),
        # Steps or epochs of linear warm-up from 0 (for one_cycle: the rising part).
        "warmup_steps": config_dict.placeholder(int),
        "warmup_epochs": config_dict.placeholder(float),
        # For sgd, rmsprop, muon and muon_sgd (for what that updates by Muon).
        "momentum": 0.9,
        # For sgd, rmsprop, muon and muon_sgd; no effect without momentum.
        "nesterov": True,
        # For adam and adamw, and for what muon leaves to Adam; b2 is also the decay of rmsprop.
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        # Added to the gradient (sgd, adam, rmsprop; muon_sgd for what it updates by SGD) or subtracted from the weights
        # (adamw, muon).
        "weight_decay": 0.0,
        # "kernels": biases, normalization parameters, class tokens and position embeddings do not decay. "all": every
        # parameter decays.
        "decay_mask": "kernels",
        # Largest global norm of the gradient. 0: no clipping.
        "clip_norm": 0.0,
        # Probability mass spread evenly over all classes.
        "label_smoothing": 0.0,
        # Sharpness-aware minimization: each step takes its gradient at this distance from the parameters, in the
        # direction of a first gradient, and so takes twice the time. Often 0.05 to 0.1. 0: off.
        "sam_rho": 0.0,
        # Evaluation uses a moving average of the parameters, and of the batch normalization statistics, with this
        # decay. 0: evaluate the parameters themselves. At step s, counted from 0, the decay is at most
        # (1 + s) / (10 + s), so that the initial parameters are soon forgotten: 0.9 is reached at step 80, 0.99 at 890,
        # 0.999 at 8,990 and 0.9999 at 89,990. Before that, a larger value makes no difference.
        "ema_decay": 0.0,
        # Lookahead (Zhang et al. 2019): a slow copy of the parameters and of the batch normalization statistics. Each
        # time after so many steps, slow = decay * slow + (1 - decay) * fast, and training goes on from there: fast =
        # slow. Evaluation uses the slow copy. 0: off.
        "lookahead_every": 0,
        # The decay at the end of the run. After the fraction f of the run, it is lookahead_decay * f**lookahead_power.
        "lookahead_decay": 0.5,
        "lookahead_power": 0.0,
        # The fraction of the run at which the slow copy is made. Until then, evaluation uses the parameters themselves.
        "lookahead_from": 0.0,
    }


def _train() -> dict[str, Any]:
    return {
        # Examples per step, over all devices.
        "batch_size": 128,
        # Give exactly one of the two.
        "steps": config_dict.placeholder(int),
        "epochs": config_dict.placeholder(float),
        # "epoch": without replacement, reshuffled every epoch. "replacement": each batch is drawn independently.
        # "balanced": so is each example, and all classes are equally likely.
        "sampling": "epoch",
        # The last, partial batch of an epoch: "drop" it, or "wrap" (fill it up with the first examples of that epoch).
        "last_batch": "drop",
        # Stop, as a complete run, after this many evaluations in a row without a better validation accuracy than the
        # best one before them. eval.report="best" then reports the best checkpoint, and not the last. 0: off.
        "patience": 0,
        # Split each batch into this many parts and sum their gradients, to save memory. The result is the same, except
        # with model.norm="batch", which then normalizes each part by its own statistics. The running statistics are
        # updated once per step, with the mean over the parts.
        "accumulate": 1,
        # Most steps sent to the device at once. 0: about half a second of training.
        "steps_per_dispatch": 0,
    }


def _eval() -> dict[str, Any]:
    return {
        # Every size gives the same result, on any number of devices. Larger is faster until memory runs out.
        "batch_size": 512,
        # How often to evaluate the validation split; give at most one of the two. Neither: only at the end.
        "every_steps": config_dict.placeholder(int),
        "every_epochs": config_dict.placeholder(float),
        # Checkpoint whose test accuracy is reported: "last", or "best" by validation accuracy.
        "report": "last",
        # Also evaluate the whole training split, unaugmented, at the end.
        "train": True,
        # Test-time augmentation: "flip" averages the logits of an image and its mirror image; "flip_shift" also those
        # of both shifted by one pixel, see imgclf_jax/augment/tta.py. The results get tta_accuracy and tta_loss beside
        # accuracy and loss, which stay those of the image itself. It applies to the validation and test splits at the
        # end, and to --mode=eval; not to the training split, nor to evaluations during training, by which checkpoints
        # are chosen. "none": off.
        "tta": "none",
    }


def _log() -> dict[str, Any]:
    return {
        # Steps between rows of the metrics files. Each row is the mean since the previous one.
        "every_steps": 100,
        # Write TensorBoard event files.
        "tensorboard": True,
        # Your own writers, "module:name", called with (workdir, config as a dict): objects with scalars(step, values)
        # and close(). The names of the values are like "valid/accuracy". An exception in one only ends that writer.
        "writers": (),
        # "auto" (a progress bar on a terminal, plain lines elsewhere), "bar", "lines", "json" (only rows and results,
        # one JSON object on each line) or "none" (only results).
        "progress": "auto",
        # Least seconds between plain lines. 0: one line per row.
        "line_seconds": 10.0,
    }


def _checkpoint() -> dict[str, Any]:
    return {
        # How often to save; give at most one of the two. Neither: at every evaluation and at the end.
        "every_steps": config_dict.placeholder(int),
        "every_epochs": config_dict.placeholder(float),
        # How many of the newest checkpoints to keep, in addition to the best.
        "keep": 2,
        # Also keep, for good, each checkpoint whose step is a multiple of this number, which must be a multiple of the
        # steps between two checkpoints or two evaluations. 0: off.
        "keep_every": 0,
    }


def _parallel() -> dict[str, Any]:
    return {
        # "jit": the batch is sharded over the devices and the compiler inserts the collectives. "shard_map", "pmap":
        # each device computes its part, with explicit collectives. All give the same numbers. "auto" is "jit".
        "strategy": "auto",
        # Number of devices to use, over all processes. 0: all of them.
        "devices": 0,
        # (data, model): shape of the device mesh. Batches are split over all devices; large parameters and their
        # optimizer state are split over the second axis. (): (devices, 1), with all parameters on every device.
        "mesh": (),
        # Placement of the data set: "replicated" on every device, "sharded" over them, or "auto" (sharded if a copy
        # would take more than a quarter of a device's memory).
        "data": "auto",
    }


# Fields that change what is written and when, or where data is stored, but not the numbers that training computes.
NOT_MATHEMATICS = (
    "data.dir",
    "data.archive",
    "data.url",
    "data.download",
    "data.allow_sample",
    "data.examine",
    "data.max_device_bytes",
    "data.workers",
    "eval.batch_size",
    "eval.train",
    "eval.tta",
    "log.",
    "metrics",
    "checkpoint.",
    "train.steps_per_dispatch",
    "parallel.",
)
# Fields that differ between the repetitions of one experiment.
REPETITION = ("seed", "data.fold")


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The config as plain nested dicts; tuples become lists, empty placeholders `None`."""
    return json.loads(config.to_json_best_effort())


def from_json(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `to_json`.

    Raises:
        UserError: a field does not exist or cannot hold its value.
    """
    config = default()
    problems = []
    for path, value in flatten(values).items():
        *sections, field = path.split(".")
        owner = config
        for section in sections:
            owner = owner.get(section) if isinstance(owner, ConfigDict) else None
        if ".".join(sections) in FREE and isinstance(owner, ConfigDict):
            set_option(owner, field, _tuples(value))
        elif not isinstance(owner, ConfigDict) or field not in owner:
            problems.append(unknown_field(path))
        elif isinstance(owner[field], ConfigDict):
            if value != {}:
                problems.append(f"config field {path} is a section and cannot be {value!r}")
        else:
            try:
                owner[field] = _tuples(value)
            except (TypeError, ValueError, RecursionError):
                problems.append(f"config field {path} cannot be {value!r}")
    if problems:
        raise UserError("\n".join(problems))
    return config


def field_problems(config: ConfigDict) -> list[str]:
    """Returns one line for the fields that a config file left out or, if there are none, one for each it added."""
    expected, given = ({_without_option(path) for path in flatten(values.to_dict())} for values in (default(), config))
    if lacking := sorted(expected - given):
        return [f"the config lacks {', '.join(lacking)}; make it with imgclf_jax.config.default()"]
    return [unknown_field(path) for path in sorted(given - expected)]


def problems(config: ConfigDict) -> list[str]:
    """Returns one line for each field that keeps a config from being written to `config.json` and read back.

    Such fields were added or left out by the config file, have another type, or have a value that JSON cannot hold.
    """
    if wrong_fields := field_problems(config):
        return wrong_fields
    defaults, given = flatten(default().to_dict()), flatten(config.to_dict())
    not_plain = [
        f"{path}={value!r} ({type(value).__name__}) cannot be kept in config.json; give a plain "
        f"{'number or name' if defaults.get(path) is None else type(defaults[path]).__name__}"
        for path, value in given.items()
        if not _is_plain(value) and not (path in FREE and value == {})
    ]
    not_plain += [
        f"{path}={value!r} must be a number, text or a tuple; options have no sections of their own"
        for path, value in given.items()
        if path not in FREE and _without_option(path) in FREE and path.count(".") > 2
    ]
    if not_plain:
        return not_plain
    try:
        again = flatten(from_json(to_json(config)).to_dict())
    except UserError as error:
        return str(error).splitlines()
    return [f"{path}={value!r} would become {again[path]!r}" for path, value in given.items() if value != again[path]]


def _is_plain(value):
    """Whether JSON can hold the value. NaN is excluded: it would not equal itself when read back."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or (isinstance(value, bool | int | float | str) and value == value)


def set_option(options: ConfigDict, name: str, value: Any) -> None:
    """Sets a key of a section in `FREE`, which may be new or have had a value of another type."""
    if isinstance(options.get(name), float) and type(value) is int:
        value = float(value)
    with options.unlocked(), options.ignore_type():
        options[name] = value


def own_parts(config: ConfigDict) -> dict[str, str]:
    """Returns the parts of a config that are not ours: the config field (with a number in a list) -> "module:name"."""
    fields = ("model.name", "loss.name", "optim.name", "optim.schedule", "data.source")
    lists = ("augment.extra", "metrics", "log.writers")
    named = {path: _value_at(config, path) for path in fields}
    named |= {f"{path}[{number}]": name for path in lists for number, name in enumerate(_value_at(config, path))}
    return {path: name for path, name in named.items() if components.is_own(name)}


def _value_at(config, path):
    for part in path.split("."):
        config = config[part]
    return config


def _without_option(path: str) -> str:
    """The section in `FREE` that a field is in; otherwise the field itself."""
    return next((free for free in FREE if path.startswith(f"{free}.")), path)


def unknown_field(path: str) -> str:
    """The line about a field that does not exist, with the closest one that does."""
    names = flatten(to_json(default()))
    near = difflib.get_close_matches(path, names, n=1)
    # A field in the wrong section may not have a similar path, but it has the same name.
    near = near or [name for name in names if name.rpartition(".")[2] == path.rpartition(".")[2]][:1]
    return f"unknown config field {path}" + (f"; did you mean {near[0]}?" if near else "")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts to `{"section.field": value}`. An empty dict is kept as a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line per field that differs between two `to_json` configs and can change what training computes.

    A field that is missing from an older config counts as its default.
    """
    defaults = flatten(to_json(default()))
    old, new = defaults | flatten(old), defaults | flatten(new)
    return [
        f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
        for key in sorted(old | new)
        if not key.startswith(NOT_MATHEMATICS) and old.get(key, ...) != new.get(key, ...)
    ]


def identity(config: ConfigDict) -> str:
    """Returns the SHA-256 (hex) of an experiment: the same for all of its repetitions and on every machine.

    It covers the fields of `experiment`. A field that a later version adds does not change it.
    """
    return hashlib.sha256(json.dumps(experiment(config), sort_keys=True).encode()).hexdigest()


def experiment(config: ConfigDict) -> dict[str, Any]:
    """Returns what distinguishes an experiment from that of the default config, and not its repetitions.

    Returns:
        "section.field" -> value as in JSON, for the fields that can change what training computes and differ from their
        defaults, except `REPETITION`.
    """
    defaults = flatten(to_json(default()))
    return {
        path: value
        for path, value in flatten(to_json(config)).items()
        if value != defaults.get(path, ...) and path not in REPETITION and not path.startswith(NOT_MATHEMATICS)
    }


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
