"""Trains the network of a config here and in PyTorch, from the same start on the same batches, and prints both curves.

    python scripts/compare_torch.py --config=configs/resnet18.py --options=width=16 --images=5000 --epochs=4 --seeds=3
    python scripts/compare_torch.py --config=configs/vit.py --options=depth=6 --rerun_perturbed --json=vit.json

Both sides have the same initial parameters, optimizer, decayed parameters, clipping, label smoothing and learning rate
of each step. Ours takes the steps of `python -m imgclf_jax.main`: many in one dispatch, augmented inside. PyTorch gets
each batch from our functions: the same order, augmentation, mixing and normalization. The schedule is shortened:
durations in epochs shrink with the length of the run. `torch_zoo.py` has the networks, and says where PyTorch's own
layers differ.

First, both take two steps, and PyTorch takes them in float64 too. The largest differences from float64 are printed: of
the logits, the loss, the gradients and the running statistics of the first step; of the parameters after both; and of
the parameters after five updates by the same gradients, which shows a difference of the optimizers alone. If ours are
beyond the tolerance, the exit status is 1. A value that rounding moves to the other side of a ReLU's zero changes
elements of a gradient by 1 % and more: from then on, two correct trainings in float32 drift apart. So curves agree in
their course and in their means over the seeds, not digit by digit. `--rerun_perturbed` shows how much of that is to be
expected: it trains here once more, from parameters that are changed by one part in a million.

Needs PyTorch (`pip install -e '.[bench]'`). The data set must be one of TFDS. Validation examples are the last ones of
its training split. The seconds are those of training alone, with compilation, and for PyTorch with the making of its
batches: use `bench_step.py` to compare speeds.
"""

import ast
import functools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torch_networks
import torch_zoo
from absl import flags
from bench_step import describe_machine, limit_cores
from ml_collections import ConfigDict
from torch.nn import functional

from imgclf_jax import augment, data, models
from imgclf_jax.config import to_json
from imgclf_jax.data import splits
from imgclf_jax.devices import parallel, xla
from imgclf_jax.errors import UserError
from imgclf_jax.rng import step_keys
from imgclf_jax.terminal.cli import parse, run_tool
from imgclf_jax.terminal.console import Console
from imgclf_jax.training import exact_evaluation, experiment, metrics, multistep, optim
from imgclf_jax.training.experiment import Experiment
from imgclf_jax.training.state import TrainState
from imgclf_jax.training.validate import validate

FLAGS = flags.FLAGS
CHECKED_STEPS = 2  # The learning rate of the first may be 0.
UPDATES = 5  # by the same gradients
TOLERANCE = 1e-4  # for the relative differences of ours
# The same for gradients, which jump where a ReLU is at zero, and for the parameters that follow from them. For a
# ResNet-18 of width 16, PyTorch's float32 was at 0.1 and 0.3. Mistakes in layouts give about 1.
GRADIENT_TOLERANCE, CHANGE_TOLERANCE = 0.1, 0.5
PERTURBATION = 1e-6  # relative
Tensors = dict[str, torch.Tensor]
TINY = 1e-3  # tensors with smaller elements, relative to the largest of all, are compared on the scale of this


def define_flags() -> None:
    """Defines the flags of this tool. `imgclf_jax.terminal.cli` adds `--config` and its overrides."""
    flags.DEFINE_list("options", [], "Options of the model, as in width=16,stem=cifar.")
    flags.DEFINE_integer("images", 5000, "Training images, the first of the data set.", lower_bound=1)
    flags.DEFINE_integer("valid", 2000, "Validation images, the last of the data set.", lower_bound=1)
    flags.DEFINE_integer("epochs", 4, "Length of a run.", lower_bound=1)
    flags.DEFINE_integer("seeds", 1, "How many seeds, from that of the config.", lower_bound=1)
    flags.DEFINE_integer("threads", 0, "CPU cores to use. 0: all that this process may use.", lower_bound=0)
    flags.DEFINE_bool("rerun_perturbed", False, "Also train here from slightly different parameters.")
    flags.DEFINE_string("json", None, "File to write all numbers to.")


class Setup(NamedTuple):
    """What both sides share.

    Attributes:
        experiment: the functions of the config.
        train, valid: the splits.
        normalization: of the inputs, on the device.
        device: of PyTorch.
    """

    experiment: Experiment
    train: data.Split
    valid: data.Split
    normalization: augment.Normalization
    device: Any


class Difference(NamedTuple):
    """Largest relative differences from PyTorch in float64.

    Attributes:
        what: what is compared.
        ours, theirs: the differences of our float32 and of PyTorch's.
        allowed: the tolerance for ours.
    """

    what: str
    ours: float
    theirs: float
    allowed: float


class Curve(NamedTuple):
    """A run: the mean training loss and the validation accuracy of each epoch, and the seconds of training."""

    loss: list[float]
    accuracy: list[float]
    seconds: float


def main(argv: list[str]) -> int:
    """Parses the command line, compares and prints. Returns the exit status: 1 if the first steps differ."""
    define_flags()
    config = parse(argv)
    if config is None:
        raise UserError("--config is missing; for example --config=configs/resnet18.py")
    if FLAGS.json and not Path(FLAGS.json).absolute().parent.is_dir():
        raise UserError(f"--json={FLAGS.json}: the folder does not exist")
    cores = limit_cores(FLAGS.threads)
    xla.configure_xla()
    setup = set_up(shortened(config), cores)
    config, console = setup.experiment.config, Console()
    machine = describe_machine(cores, torch_networks)
    plan = setup.experiment.plan
    console.print(", ".join(machine.values()))
    console.print(f"{config.model.name}: {plan.train_count} images, {plan.steps} steps, {plan.warmup_steps} of warm-up")
    with xla.quiet():
        differences = first_steps(setup)
    columns = ["difference from PyTorch in float64", "ours", "PyTorch", "allowed for ours"]
    console.table(columns, [[row.what, *(f"{value:.1e}" for value in row[1:])] for row in differences])
    same = all(row.ours <= row.allowed for row in differences)
    if not same:
        console.warn("the first steps differ by more than rounding; the curves below compare two different things")
    runs = []
    for seed in range(config.seed, config.seed + FLAGS.seeds):
        runs.append({"seed": seed, **{name: curve._asdict() for name, curve in train_all(setup, seed).items()}})
        show(console, runs[-1])
    summary = summarize(runs)
    for row in summary:
        console.print(line(row, len(runs)))
    if FLAGS.json:
        record = {"machine": machine, "config": to_json(config), "runs": runs, "summary": summary}
        record["first_steps"] = [row._asdict() for row in differences]
        Path(FLAGS.json).write_text(json.dumps(record, indent=2) + "\n")
    return 0 if same else 1


def shortened(config: ConfigDict) -> ConfigDict:
    """Returns the config of the comparison.

    Raises:
        UserError: the config has something that cannot be the same on both sides.
    """
    if not splits.are_expressions(config.data):
        raise UserError(f"data.source={config.data.source!r}: the comparison takes parts of data sets of TFDS")
    for path, needed in (
        ("model.dtype", "float32"),
        ("optim.ema_decay", 0.0),
        ("optim.lookahead_every", 0),
        ("optim.factors", ()),
        ("optim.freeze_after", ()),
        ("train.accumulate", 1),
        ("parallel.devices", 1),
    ):
        section, _, field = path.partition(".")
        if config[section][field] not in (needed, 0):
            raise UserError(f"{path}={config[section][field]!r} is not compared; add --config.{path}={needed}")
    config = config.copy_and_resolve_references()
    if config.train.epochs and config.optim.warmup_epochs:
        config.optim.warmup_epochs *= FLAGS.epochs / config.train.epochs
    config.train.update(epochs=float(FLAGS.epochs), steps=0)
    whole = config.data.copy_and_resolve_references()
    whole.update(train_split="train", valid_split="", test_split="", folds=0, fold=0)
    size = data.describe(whole).split_sizes["train"]
    if FLAGS.images + FLAGS.valid > size:
        raise UserError(f"--images={FLAGS.images} and --valid={FLAGS.valid} are more than the {size} there are")
    config.data.update(whole)
    config.data.update(train_split=f"train[:{FLAGS.images}]", valid_split=f"train[{size - FLAGS.valid}:]")
    config.parallel.update(devices=1, strategy="auto")
    return config


def set_up(config: ConfigDict, cores: int) -> Setup:
    """Checks the config, reads the data and makes the functions of the experiment."""
    plan, info = validate(config)
    if FLAGS.options:
        with config.unlocked():
            config.model.options = dict(config.model.get("options", {})) | dict(map(_option, FLAGS.options))
    if problems := models.problems(config.model, augment.input_shape(config, info.image_shape), len(info.class_names)):
        raise UserError("\n".join(problems))
    # The default on GPUs, TF32, has fewer digits.
    jax.config.update("jax_default_matmul_precision", "highest")
    device = torch_networks.configure(jax.default_backend(), cores)
    torch.set_float32_matmul_precision("highest")
    dataset = data.load(config.data)
    built = experiment.build(config, plan, info.image_shape, info.class_names, parallel.create(config))
    train, valid = dataset.splits["train"], dataset.splits["valid"]
    sums = data.statistics.of_split(train, dataset.fingerprint, lambda *_: None)
    normalization = built.strategy.put(augment.normalization(config, info.image_shape, sums))
    torch_zoo.create(built.model, built.input_shape)  # refuses what cannot be compared
    return Setup(built, train, valid, normalization, device)


def _option(text):
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--options={text!r}: write name=value")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


class Ours:
    """Training in this package."""

    def __init__(self, setup: Setup, seed: int, perturbed: bool = False):
        """Makes the initial state."""
        self._setup, self._key, built = setup, jax.random.key(seed), setup.experiment
        self.state = built.compile_init()(self._key)
        if perturbed:
            factors = np.random.default_rng(0)
            changed = jax.tree.map(
                lambda x: x * (1 + PERTURBATION * factors.standard_normal(x.shape, np.float32)), self.state.params
            )
            self.state = self.state.replace(params=built.strategy.put(changed))
        self._run_steps = built.compiled("run_steps", built.compile_run_steps)
        self._train = built.compiled("train split", lambda: built.place(setup.train))
        self._valid = built.compiled("valid split", lambda: built.place(setup.valid))

    def take(self, steps: int) -> float:
        """Takes steps, all within an epoch. Returns the mean loss."""
        built = self._setup.experiment
        feed = self._train.feed(built.sampler, built.plan.steps, self._key, 0)
        batches, _ = feed(int(self.state.step), steps)
        constants = {"normalization": self._setup.normalization, "data": batches, "key": self._key}
        self.state, meter = self._run_steps(
            state=self.state, meter=multistep.empty_meter(), count=jnp.int32(steps), **constants
        )
        return multistep.means(jax.device_get(meter))["loss"]

    def accuracy(self) -> float:
        """Returns the accuracy on the validation split."""
        built = self._setup.experiment
        result = exact_evaluation.evaluate_split(
            built.compile_evaluate(),
            self._valid,
            self.state.eval_variables(),
            self._setup.normalization,
            built.config.eval.batch_size,
            lambda *_: None,
        )
        return result["accuracy"]


class Theirs:
    """Training in PyTorch on the same batches."""

    def __init__(self, setup: Setup, seed: int, state: TrainState, dtype: torch.dtype = torch.float32):
        """Copies the initial parameters and statistics of `state`."""
        self._setup, self._key, built = setup, jax.random.key(seed), setup.experiment
        self._optim, self._step, self._dtype = built.config.optim, 0, dtype
        self.network = torch_zoo.create(built.model, built.input_shape)
        torch_zoo.load(self.network, state.params, state.batch_stats)
        self.network.to(device=setup.device, dtype=dtype, memory_format=torch.channels_last)
        decays = torch_zoo.decaying(state.params, self._optim.decay_mask)
        self._optimizer = torch_zoo.create_optimizer(self._optim, self.network, decays)
        steps = jnp.arange(built.plan.steps + UPDATES)
        self._rates = np.broadcast_to(jax.device_get(jax.vmap(built.schedule)(steps)), steps.shape)

    def objective(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the logits and the loss of the batch of a step."""
        images, targets = map(self._tensor, batch(self._setup, self._key, step))
        logits = self.network(images)
        return logits, functional.cross_entropy(logits, targets)

    def take(self, steps: int) -> float:
        """Takes steps. Returns the mean loss."""
        self.network.train()
        total = 0.0
        for _ in range(steps):
            self._optimizer.zero_grad()
            loss = self.objective(self._step)[1]
            loss.backward()
            self.update()
            total += loss.item()
        return total / steps

    def update(self, gradients: Tensors | None = None) -> None:
        """Updates the parameters by their gradients, or by others, by name."""
        for name, parameter in self.network.named_parameters():
            if gradients is not None:
                parameter.grad = gradients[name].to(parameter, copy=True)
        if self._optim.clip_norm:
            torch_zoo.clip(self.network, self._optim.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = float(self._rates[self._step])
        self._optimizer.step()
        self._step += 1

    def accuracy(self) -> float:
        """Returns the accuracy on the validation split."""
        self.network.eval()
        correct, valid, size = 0, self._setup.valid, self._setup.experiment.config.eval.batch_size
        with torch.no_grad():
            for start in range(0, len(valid), size):
                images = central(self._setup, valid.images[start : start + size])
                labels = torch.from_numpy(valid.labels[start : start + size]).to(self._setup.device)
                correct += int((self.network(self._tensor(images)).argmax(1) == labels).sum())
        return correct / len(valid)

    def _tensor(self, array):
        """[B, H, W, C] becomes [B, C, H, W] in the memory format "channels last"; other arrays keep their shape."""
        tensor = torch.from_numpy(np.array(array)).to(self._setup.device, self._dtype)
        return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def batch(setup: Setup, key: jax.Array, step: int) -> tuple[jax.Array, jax.Array]:
    """Returns what the network sees in a step, images float32 [B, H, W, C], and the targets float32 [B, classes]."""
    built = setup.experiment
    epoch = step // built.sampler.steps_per_epoch
    order = built.compiled("order", lambda: jax.jit(built.sampler.order))(key, epoch)
    indices = built.sampler.indices(key, order, jnp.int32(step))
    seen = built.compiled("seen", lambda: jax.jit(functools.partial(_seen, built)))
    rows = np.asarray(indices)
    return seen(setup.normalization, setup.train.images[rows], setup.train.labels[rows], indices, key, step, epoch)


def _seen(built, normalization, images, labels, indices, key, step, epoch):
    settings, keys = built.config.augment, step_keys(key, step)
    mirrored = augment.alternating(key, indices, epoch) if experiment.alternates(built.config) else None
    images = augment.augment(settings, keys.augment, images, jnp.arange(len(labels), dtype=jnp.int32), mirrored)
    targets = metrics.targets(labels, len(built.class_names), built.config.optim.label_smoothing)
    if mix := augment.mixing(settings):
        images, targets = mix(keys.augment, images, targets)
    return normalization(images), targets


def central(setup: Setup, images: np.ndarray) -> jax.Array:
    """Returns what the network sees of images uint8 [B, H, W, C] in evaluation."""
    return setup.normalization(augment.central(setup.experiment.config.augment, jnp.asarray(images)))


def first_steps(setup: Setup) -> list[Difference]:
    """Takes the first steps here and in PyTorch in float32 and float64, and compares."""
    steps = min(CHECKED_STEPS, setup.experiment.plan.steps_per_epoch)
    start, gradients, ours = our_steps(setup, steps)
    dtypes = torch.float32, torch.float64
    theirs, exact = (their_steps(setup, steps, start, torch_zoo.convert(gradients), dtype) for dtype in dtypes)
    rows = []
    for what in ("logits", "loss", "gradients", "running statistics"):
        if exact[what]:
            found, other = (largest(result[what], exact[what]) for result in (ours, theirs))
            rows.append(Difference(what, found, other, GRADIENT_TOLERANCE if what == "gradients" else TOLERANCE))
    begin = _doubles(torch_zoo.convert(start.params))
    for what, allowed in (("parameters", CHANGE_TOLERANCE), ("updates", TOLERANCE)):
        found, other = (moved(begin, result[what], exact[what]) for result in (ours, theirs))
        text = {"parameters": f"change in {steps} steps", "updates": f"change in {UPDATES} updates, same gradients"}
        rows.append(Difference(text[what], found, other, allowed))
    return rows


def our_steps(setup: Setup, steps: int) -> tuple[TrainState, Any, dict[str, Tensors]]:
    """Takes steps. Returns the initial state, its gradients, and the results by what is compared, as in PyTorch."""
    built, seed = setup.experiment, setup.experiment.config.seed
    ours = Ours(setup, seed)
    start = jax.tree.map(np.array, ours.state)  # Copies: the first step reuses the buffers.
    images, targets = batch(setup, jax.random.key(seed), 0)

    @jax.jit
    def differentiate(params, batch_stats):
        def loss(params):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, _ = built.model.apply(variables, images, train=True, mutable=["batch_stats"])
            return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), logits

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, logits), gradients = differentiate(start.params, start.batch_stats)
    result = {"logits": {"": logits}, "loss": {"": loss}, "gradients": torch_zoo.convert(gradients)}
    ours.take(1)
    result["running statistics"] = torch_zoo.convert(ours.state.batch_stats)
    if steps > 1:
        ours.take(steps - 1)
    result["parameters"] = torch_zoo.convert(ours.state.params)
    result["updates"] = torch_zoo.convert(_updated(built, start.params, gradients))
    return start, gradients, {what: _doubles(tensors) for what, tensors in result.items()}


def _updated(built, params, gradients):
    """The parameters after `UPDATES` updates by the same gradients."""
    optimizer = optim.create_optimizer(built.config.optim, built.schedule)

    @jax.jit
    def update(params, state):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(UPDATES):
        params, state = update(params, state)
    return params


def their_steps(
    setup: Setup, steps: int, start: TrainState, gradients: Tensors, dtype: torch.dtype
) -> dict[str, Tensors]:
    """Takes steps in PyTorch. Returns the results by what is compared.

    Args:
        setup: what both sides share.
        steps: how many.
        start: the initial state.
        gradients: our gradients of the first step.
        dtype: the precision.
    """
    first, second, updated = (Theirs(setup, setup.experiment.config.seed, start, dtype) for _ in range(3))
    logits, loss = first.objective(0)
    loss.backward()
    result = {"logits": {"": logits}, "loss": {"": loss}}
    result["gradients"] = {name: parameter.grad for name, parameter in first.network.named_parameters()}
    second.take(1)
    buffers = second.network.named_buffers()
    result["running statistics"] = _doubles({name: value for name, value in buffers if "running_" in name})
    if steps > 1:
        second.take(steps - 1)
    result["parameters"] = dict(second.network.named_parameters())
    for _ in range(UPDATES):
        updated.update(gradients)
    result["updates"] = dict(updated.network.named_parameters())
    return {what: _doubles(tensors) for what, tensors in result.items()}


def _doubles(tensors):
    """Copies, so that later steps leave them alone."""
    return {
        name: torch.as_tensor(np.array(value) if isinstance(value, jax.Array) else value.detach())
        .double()
        .cpu()
        .clone()
        for name, value in tensors.items()
    }


def largest(found: Tensors, exact: Tensors) -> float:
    """Returns the largest difference of an element, relative to the largest element of its tensor."""
    scale = TINY * max(float(value.abs().max()) for value in exact.values())
    return max(
        float((found[name] - value).abs().max()) / max(float(value.abs().max()), scale) for name, value in exact.items()
    )


def moved(start: Tensors, found: Tensors, exact: Tensors) -> float:
    """Returns the difference of the parameters, relative to how far they have moved, both as L2 norms.

    Biases of the keys are left out. They have no effect, so their gradient is 0 but for rounding; Adam enlarges that.
    """
    names = [name for name in start if not name.endswith("key.bias")]
    difference = sum(float((found[name] - exact[name]).square().sum()) for name in names)
    distance = sum(float((exact[name] - start[name]).square().sum()) for name in names)
    return (difference / distance) ** 0.5 if distance else 0.0


def train_all(setup: Setup, seed: int) -> dict[str, Curve]:
    """Trains one seed on both sides, and once more here from other parameters if asked for."""
    ours = Ours(setup, seed)
    theirs = Theirs(setup, seed, jax.device_get(ours.state))
    runs: dict[str, Ours | Theirs] = {"ours": ours, "PyTorch": theirs}
    if FLAGS.rerun_perturbed:
        runs["perturbed"] = Ours(setup, seed, perturbed=True)
    return {name: train(run, setup.experiment.plan) for name, run in runs.items()}


def train(run: Ours | Theirs, plan: Any) -> Curve:
    """Trains to the end."""
    losses, accuracies, seconds = [], [], 0.0
    for _ in range(FLAGS.epochs):
        begin = time.perf_counter()
        losses.append(run.take(plan.steps_per_epoch))
        seconds += time.perf_counter() - begin
        accuracies.append(run.accuracy())
    return Curve(losses, accuracies, round(seconds, 1))


def show(console: Console, run: dict[str, Any]) -> None:
    """Prints the curves of a seed side by side."""
    names = [name for name in run if name != "seed"]
    console.print(f"seed {run['seed']}")
    columns = [
        "epoch",
        *(f"{kind} {name}" if name == "ours" else name for kind in ("loss", "accuracy") for name in names),
    ]
    rows = [
        [epoch + 1, *(f"{run[name][kind][epoch]:.4f}" for kind in ("loss", "accuracy") for name in names)]
        for epoch in range(FLAGS.epochs)
    ]
    console.table(columns, rows)
    console.print(", ".join(f"{name} {run[name]['seconds']} s" for name in names))


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, after the last epoch, means over the seeds, and mean differences from ours with standard errors."""
    rows = []
    for kind in ("loss", "accuracy"):
        for name in [name for name in runs[0] if name != "seed"]:
            last = [run[name][kind][-1] for run in runs]
            gaps = [run[name][kind][-1] - run["ours"][kind][-1] for run in runs]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None
            gap = {"minus_ours": statistics.mean(gaps), "standard_error": error} if name != "ours" else {}
            rows.append({"last": kind, "run": name, "mean": statistics.mean(last), **gap})
    return rows


def line(row: dict[str, Any], seeds: int) -> str:
    """Formats a row of `summarize`."""
    text = f"last {row['last']}, {row['run']}: mean {row['mean']:.4f}"
    if "minus_ours" in row:
        text += f", minus ours {row['minus_ours']:+.4f}"
        if row["standard_error"] is not None:
            text += f" ± {row['standard_error']:.4f} (standard error, {seeds} seeds)"
    return text


if __name__ == "__main__":
    sys.exit(run_tool(main))
