"""Builds the pure functions of an experiment, and keeps the parts they were built from and what was compiled."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from imgclf_jax import augment, models
from imgclf_jax.data.types import Split
from imgclf_jax.devices.parallel import Parallel
from imgclf_jax.errors import UserError
from imgclf_jax.models import cost
from imgclf_jax.training import freezing, losses, metrics, multistep, optim
from imgclf_jax.training.batches import Data
from imgclf_jax.training.exact_evaluation import make_evaluate
from imgclf_jax.training.placed import placement
from imgclf_jax.training.plan import Plan
from imgclf_jax.training.sampling import Sampler
from imgclf_jax.training.state import TrainState, init_state
from imgclf_jax.training.steps import make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The functions of one experiment, the parts that they were built from, and the programs compiled from them.

    No function depends on the seed of `config`, which enters through `key` alone. So the same programs serve all seeds:
    see `repeated`.

    Attributes:
        config: the whole config.
        plan: its durations.
        image_shape: (H, W, C) of the images of the data set.
        class_names: the classes, by label.
        strategy: the placement of arrays and the compilation of functions.
        model: the network.
        schedule: step -> learning rate.
        sampler: which examples a step sees.
        init: (key, variables that are known, by path) -> the state before the first step; see `init_state`.
        train_step: see `imgclf_jax.training.steps`.
        run_steps: see `imgclf_jax.training.multistep`.
        evaluate: see `imgclf_jax.training.exact_evaluation`.
        evaluate_tta: the same with the views of `eval.tta`, if there are any.
        measures: the metrics, by name.
        programs: what `compiled` keeps, by name.
    """

    config: ConfigDict
    plan: Plan
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    strategy: Parallel
    model: nn.Module
    schedule: optax.Schedule
    sampler: Sampler
    init: Callable[..., TrainState]
    train_step: Callable[..., Any]
    run_steps: Callable[..., Any]
    evaluate: Callable[..., Any]
    evaluate_tta: Callable[..., Any]
    measures: metrics.Metrics = dataclasses.field(default_factory=lambda: metrics.METRICS)
    programs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def repeated(self, config: ConfigDict) -> "Experiment":
        """Returns this experiment with another seed and the same programs.

        Args:
            config: a config that differs in the seed, and otherwise only in what is written and when.
        """
        return dataclasses.replace(self, config=config)

    def varied(self, config: ConfigDict) -> "Experiment":
        """Returns this experiment with other numbers; see `imgclf_jax.training.members.NUMBERS`. `run_steps` stays.

        Args:
            config: a config that differs in those numbers and in the seed alone.
        """
        if config.optim.learning_rate == self.config.optim.learning_rate:
            return self.repeated(config)
        schedule = optim.create_schedule(config.optim, self.plan.steps, self.plan.warmup_steps)
        programs = {name: program for name, program in self.programs.items() if name != "learning_rate"}
        return dataclasses.replace(self, config=config, schedule=schedule, programs=programs)

    def compiled(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns the result of `make`, which is called the first time that `name` is asked for."""
        if name not in self.programs:
            self.programs[name] = make()
        return self.programs[name]

    @property
    def key(self) -> jax.Array:
        """The PRNG key of the experiment."""
        return jax.random.key(self.config.seed)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the network sees."""
        return augment.input_shape(self.config, self.image_shape)

    def logits(self, variables: dict[str, Any], normalization: augment.Normalization, images: jax.Array) -> jax.Array:
        """Maps images uint8 [B, H, W, C] to logits float32 [B, classes], as evaluation does; pure, to be compiled."""
        seen = normalization(augment.central(self.config.augment, images))
        scores: Any = self.model.apply(variables, seen, train=False)
        return scores.astype("float32")

    def variable_shapes(self) -> dict[str, Any]:
        """Returns the shapes and dtypes of the network's variables for evaluation, "params" and "batch_stats"."""
        images = jax.ShapeDtypeStruct((1, *self.input_shape), "float32")
        key = jax.eval_shape(lambda: jax.random.key(0))
        variables: Any = jax.eval_shape(lambda key, images: self.model.init(key, images, train=False), key, images)
        return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def evaluation_template(self) -> dict[str, Any]:
        """Returns stand-ins for the part of a checkpoint that evaluation needs; see `for_evaluation`."""
        state: dict[str, Any] = self.variable_shapes()
        averages = self.config.optim.ema_decay > 0
        state |= {"ema": state["params"] if averages else {}, "ema_stats": state["batch_stats"] if averages else {}}
        inputs = augment.stand_in(self.config, self.image_shape)._asdict()
        return self.strategy.stand_ins({"state": state, "inputs": inputs})

    def state_shapes(self) -> TrainState:
        """Returns the shapes and dtypes of the state."""
        return jax.eval_shape(self.init, jax.eval_shape(lambda: jax.random.key(0)))

    def network_flops(self) -> tuple[int, int]:
        """Returns the FLOPs of a forward pass and of a training step; see `imgclf_jax.models.cost.network_flops`."""
        variables = self.variable_shapes()
        forward, step = cost.network_flops(self.model, variables, self.input_shape, self.sampler.batch_size)
        return forward, step * (2 if self.config.optim.sam_rho else 1)

    def template(self) -> dict[str, Any]:
        """Returns stand-ins for the content of a checkpoint: `state`, `meter` and `inputs`, the normalization."""
        content = {
            "state": self.state_shapes(),
            "meter": jax.eval_shape(lambda: multistep.empty_meter(self.measures)),
            "inputs": augment.stand_in(self.config, self.image_shape)._asdict(),
        }
        return self.strategy.stand_ins(content)

    def compile_init(self) -> Any:
        """Returns `init`, not yet lowered."""
        sharding = self.strategy.state_sharding
        return self.compiled("init", lambda: self.strategy.jit(self.init, sharding(self.state_shapes())))

    def initial(self, key: jax.Array, known: Mapping[str, Any] | None = None) -> TrainState:
        """Returns the state before the first step, on the devices.

        Args:
            key: the experiment's key, on the devices.
            known: the variables that are not random, by path; see `imgclf_jax.training.ancestor.Ancestor.known`.
        """
        return self.compile_init()(key, self.strategy.put(dict(known))) if known else self.compile_init()(key)

    def compile_run_steps(self) -> Any:
        """Returns `run_steps`, not yet lowered. The buffers of the state are reused for the result."""
        out_shardings = self.strategy.state_sharding(self.state_shapes()), self.strategy.replicated
        shardings = {"data": placement(self.strategy).training_shardings(self.strategy)}
        return self.strategy.compile(self.run_steps, ("state",), shardings, out_shardings)

    def evaluated(self, tta: bool = False) -> tuple[str, ...]:
        """Returns the names of what an evaluation measures.

        Args:
            tta: whether it has the views of `eval.tta`.
        """
        return (*self.measures, *(metrics.TTA if tta and augment.tta.is_on(self.config.eval.tta) else ()))

    def compile_evaluate(self, tta: bool = False) -> Any:
        """Returns `evaluate`, not yet lowered.

        Args:
            tta: whether it has the views of `eval.tta`.
        """
        views = tta and augment.tta.is_on(self.config.eval.tta)
        name, function = ("evaluate_tta", self.evaluate_tta) if views else ("evaluate", self.evaluate)
        shardings = {"data": placement(self.strategy).evaluation_shardings(self.strategy)}
        return self.compiled(name, lambda: self.strategy.compile(function, shardings=shardings))

    def place(self, split: Split) -> Any:
        """Places a split: copies it to the devices, or prepares to stream it; see `placement`."""
        return placement(self.strategy).place(split, self.strategy)

    def data_stand_ins(self) -> Data:
        """Returns stand-ins with the shapes, dtypes and shardings of the training data, to compile against."""
        return placement(self.strategy).stand_ins(self.strategy, self.sampler, self.image_shape)


def build(
    config: ConfigDict,
    plan: Plan,
    image_shape: tuple[int, int, int],
    class_names: tuple[str, ...],
    strategy: Parallel,
) -> Experiment:
    """Builds all functions of a valid config.

    Args:
        config: the whole config.
        plan: its durations.
        image_shape: (H, W, C) of the images of the data set.
        class_names: of the data set, by label.
        strategy: the placement of arrays on devices.
    """
    model = models.create(config.model, len(class_names), strategy.axis_name)
    schedule = optim.create_schedule(config.optim, plan.steps, plan.warmup_steps)
    optimizer = optim.create_optimizer(config.optim, schedule, config.init.freeze)
    sampler = _sampler(config, plan)
    train_step = step_of(config, plan, model, len(class_names), strategy)
    measures = metrics.create(config.metrics)
    input_shape = augment.input_shape(config, image_shape)
    return Experiment(
        config=config,
        plan=plan,
        image_shape=image_shape,
        class_names=class_names,
        strategy=strategy,
        model=model,
        schedule=schedule,
        sampler=sampler,
        init=lambda key, known=None: init_state(model, optimizer, key, input_shape, config.optim.ema_decay > 0, known),
        train_step=train_step,
        run_steps=multistep.make_run_steps(train_step, sampler, strategy, alternates(config)),
        evaluate=_evaluation(config, model, measures, strategy),
        evaluate_tta=_evaluation(config, model, measures, strategy, config.eval.tta),
        measures=measures,
    )


def for_evaluation(
    config: ConfigDict,
    plan: Plan,
    image_shape: tuple[int, int, int],
    class_names: tuple[str, ...],
    strategy: Parallel,
) -> Experiment:
    """Builds the functions that evaluate a network. They need no optimizer, no schedule and no loss.

    The arguments are those of `build`.
    """
    model = models.create(config.model, len(class_names), strategy.axis_name)
    try:
        measures = metrics.create(config.metrics)
    except UserError as error:  # Only evaluation needs them, and the network does not.
        warnings.warn(f"{error}; the metric is left out", stacklevel=3)
        measures = metrics.METRICS
    return Experiment(
        config=config,
        plan=plan,
        image_shape=image_shape,
        class_names=class_names,
        strategy=strategy,
        model=model,
        schedule=_not_built,
        sampler=_sampler(config, plan),
        init=_not_built,
        train_step=_not_built,
        run_steps=_not_built,
        evaluate=_evaluation(config, model, measures, strategy),
        evaluate_tta=_evaluation(config, model, measures, strategy, config.eval.tta),
        measures=measures,
    )


def _evaluation(config, model, measures, strategy, views="none"):
    eval_step = make_eval_step(model, lambda images: augment.central(config.augment, images), measures, views)
    return make_evaluate(eval_step, config.eval.batch_size, strategy)


def _not_built(*arguments: Any) -> Any:
    raise RuntimeError("this experiment was built for evaluation alone")


def _sampler(config, plan):
    return Sampler(
        examples=plan.train_count,
        batch_size=config.train.batch_size,
        steps_per_epoch=plan.steps_per_epoch,
        replacement=config.train.sampling == "replacement",
        parts=config.train.accumulate,
        balanced=config.train.sampling == "balanced",
        labels=plan.labels if config.train.sampling == "balanced" else b"",
    )


def step_of(config: Any, plan: Plan, model: nn.Module, classes: int, strategy: Parallel) -> Callable[..., Any]:
    """Returns the training step of a config, whose `NUMBERS` (see `imgclf_jax.training.members`) may be traced."""
    schedule = optim.create_schedule(config.optim, plan.steps, plan.warmup_steps)
    counts = np.bincount(np.frombuffer(plan.labels, np.int32), minlength=classes) if plan.labels else None
    frozen = config.init.freeze
    train_step = make_train_step(
        freezing.network(model, frozen),
        optim.create_optimizer(config.optim, schedule, frozen),
        functools.partial(augment.augment, config.augment),
        mix=augment.mixing(config.augment),
        classes=classes,
        loss=losses.create(config.loss, classes, counts),
        measures=metrics.create(config.metrics),
        label_smoothing=config.optim.label_smoothing,
        sam_rho=config.optim.sam_rho,
        ema_decay=config.optim.ema_decay,
        accumulate=config.train.accumulate,
        all_sum=strategy.all_sum,
    )
    return freezing.step(train_step, frozen)


def alternates(config: Any) -> bool:
    """Whether flips alternate between epochs."""
    return config.augment.flip and config.augment.flip_mode == "alternating"
