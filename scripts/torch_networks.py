"""The networks of `imgclf_jax.models` in PyTorch, and their training step, for `bench_step.py` to compare with.

Layers, widths, order (pooling before normalization and ReLU) and parameter names are the same as ours. If PyTorch has a
faster way to compute the same thing, it is used: in-place ReLUs, fused optimizers. `torch_speednet.py` has the network
of the time-to-accuracy recipes.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as flax_nn
import numpy as np
import torch
import torch_speednet
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional

from imgclf_jax.errors import UserError
from imgclf_jax.models.cnn import CNN, TutorialCNN
from imgclf_jax.models.linear import MLP, Softmax

Layers = Iterator[tuple[str, nn.Module]]


def create(model: flax_nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """Makes the PyTorch version of `model`, with PyTorch's own initial parameters.

    Args:
        model: an unbound network of `imgclf_jax.models`.
        image_shape: (H, W, C) of the network's input.

    Returns:
        A module: images float32 [B, C, H, W] -> logits [B, classes], even if the model has a sigmoid head.

    Raises:
        UserError: this model has no PyTorch version.
    """
    if torch_speednet.is_ours(model):
        return torch_speednet.SpeedNet(torch_speednet.of(model))
    channels = image_shape[-1]
    stages: list[tuple[str, nn.Module]] = []
    hidden: tuple[int, ...]
    match model:
        case Softmax():
            hidden, dropout = (), 0.0
        case MLP():
            hidden, dropout = model.hidden, model.dropout
        case CNN():
            normed = model.norm == "batch"
            stages = list(_stages(channels, model.widths, padding=1, pooled=len(model.widths), normed=normed))
            hidden, dropout = model.hidden, model.dropout
        case TutorialCNN():
            pooled = model.windows().count(2)
            stages = list(_stages(channels, model.widths, padding=0, pooled=pooled, normed=False))
            hidden, dropout = model.hidden, model.dropout
        case _:
            raise UserError(f"model {type(model).__name__} has no PyTorch version; leave out --torch")
    features = math.prod(_features(nn.Sequential(OrderedDict(stages)), image_shape))
    head = _head(features, hidden, dropout, model.num_classes)
    return nn.Sequential(OrderedDict([*stages, *head]))


def _stages(channels: int, widths: tuple[int, ...], *, padding: int, pooled: int, normed: bool) -> Layers:
    """Yields 3×3 convolutions; the first `pooled` of them have 2×2 max-pooling."""
    for index, width in enumerate(widths, start=1):
        yield f"conv{index}", nn.Conv2d(channels, width, 3, padding=padding, bias=not normed)
        if index <= pooled:
            yield f"pool{index}", nn.MaxPool2d(2)
        if normed:
            yield f"norm{index}", nn.BatchNorm2d(width, eps=1e-5, momentum=0.1)  # Flax's momentum 0.9
        yield f"relu{index}", nn.ReLU(inplace=True)
        channels = width


def _head(features: int, hidden: tuple[int, ...], dropout: float, num_classes: int) -> Layers:
    yield "flatten", nn.Flatten()
    for index, units in enumerate(hidden, start=1):
        yield f"dense{index}", nn.Linear(features, units)
        yield f"dense{index}_relu", nn.ReLU(inplace=True)
        features = units
    if dropout:
        yield "dropout", nn.Dropout(dropout)
    yield "output", nn.Linear(features, num_classes)


def _features(stages: nn.Sequential, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Returns the output shape (C, H, W) of the stages for an image (H, W, C)."""
    height, width, channels = image_shape
    training = stages.training
    with torch.no_grad():
        shape = stages.eval()(torch.zeros(1, channels, height, width)).shape[1:]
    stages.train(training)
    return tuple(shape)


def load(network: nn.Module, variables: dict[str, Any], image_shape: tuple[int, int, int]) -> None:
    """Copies our parameters and batch statistics into the PyTorch network of the same model.

    Args:
        network: from `create`.
        variables: "params" and, with batch normalization, "batch_stats".
        image_shape: (H, W, C) of the network's input.
    """
    if isinstance(network, torch_speednet.SpeedNet):
        torch_speednet.load(network, variables)
        return
    layers = dict(network.named_children())
    before = list(layers.items())[: list(layers).index("flatten")]
    channels, height, width = _features(nn.Sequential(OrderedDict(before)), image_shape)
    first = next(name for name, layer in layers.items() if isinstance(layer, nn.Linear))
    values: dict[str, np.ndarray] = {}
    for name, parameters in variables["params"].items():
        for kind, value in parameters.items():
            value = np.asarray(value)
            if value.ndim == 4:  # HWIO -> OIHW
                value = value.transpose(3, 2, 0, 1)
            elif kind == "kernel":
                if name == first:  # We flatten (H, W, C), PyTorch (C, H, W).
                    value = value.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(value.shape)
                value = value.T
            values[f"{name}.{'bias' if kind == 'bias' else 'weight'}"] = value
    for name, statistics in variables.get("batch_stats", {}).items():
        values |= {f"{name}.running_{kind}": np.asarray(value) for kind, value in statistics.items()}
        values[f"{name}.num_batches_tracked"] = np.zeros((), np.int64)
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in values.items()})


def create_optimizer(config: ConfigDict, network: nn.Module) -> torch.optim.Optimizer | torch_speednet.Optimizers:
    """Makes the optimizer of `config.optim` at a constant rate: the time that a schedule takes is negligible.

    "muon_sgd" has the numbers of the published recipe, because others take the same time. PyTorch's RMSprop has no
    Nesterov momentum; plain momentum costs as much.

    Raises:
        UserError: this optimizer has no PyTorch version.
    """
    if config.name == "muon_sgd" and isinstance(network, torch_speednet.SpeedNet):
        return torch_speednet.Optimizers(network, torch_speednet.Recipe())
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    kernels = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    decay_others = config.weight_decay if config.decay_mask == "all" else 0.0
    groups = [{"params": kernels, "weight_decay": config.weight_decay}]
    groups += [{"params": others, "weight_decay": decay_others}] if others else []
    rate, betas = config.learning_rate, (config.b1, config.b2)
    match config.name:
        case "sgd":
            nesterov = config.nesterov and config.momentum > 0
            return torch.optim.SGD(groups, rate, config.momentum, nesterov=nesterov, fused=True)
        case "adam":
            return torch.optim.Adam(groups, rate, betas, config.eps, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, rate, betas, config.eps, fused=True)
        case "rmsprop":
            return torch.optim.RMSprop(groups, rate, config.b2, config.eps, momentum=config.momentum)
        case _:
            raise UserError(f"optimizer {config.name} has no PyTorch version; leave out --torch")


def make_step(
    config: ConfigDict, network: nn.Module, device: torch.device, compiled: bool = False
) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Makes a training step: forward, loss, backward and update, in place; no metrics are computed.

    Args:
        config: the whole config; with `model.dtype` bfloat16 the network runs under autocast.
        network: from `create`, on the device and in the memory format to measure.
        device: the device of the network.
        compiled: use `torch.compile`.

    Returns:
        (images float32 [B, C, H, W], labels int64 [B]) -> None, both on the device.
    """
    optimizer = create_optimizer(config.optim, network)
    ema, parts, clip = config.optim.ema_decay, config.train.accumulate, config.optim.clip_norm
    average_fn = torch.optim.swa_utils.get_ema_multi_avg_fn(ema) if ema else None
    average = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=average_fn) if ema else None
    forward = torch.compile(network) if compiled else network
    half = config.model.dtype == "bfloat16"

    def step(images: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        for some_images, some_labels in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = forward(some_images)
            smoothing = config.optim.label_smoothing
            loss = functional.cross_entropy(logits.float(), some_labels, label_smoothing=smoothing)
            (loss / parts).backward()
        if clip:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        if average is not None:
            average.update_parameters(network)

    return step


def training(
    config: ConfigDict,
    model: flax_nn.Module,
    image_shape: tuple[int, int, int],
    device: torch.device,
    *,
    channels_last: bool,
    compiled: bool,
) -> Callable[[int], None]:
    """Makes a function that trains on random float images on the device.

    Args:
        config: the whole config.
        model: an unbound network of `imgclf_jax.models`.
        image_shape: (H, W, C) of the network's input.
        device: from `configure`.
        channels_last: memory format of images and kernels.
        compiled: use `torch.compile`.

    Returns:
        steps -> None: takes this number of steps and waits until they are done.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    place: dict[str, Any] = {"device": device, "memory_format": memory_format}
    network = create(model, image_shape).train().to(**place)
    step = make_step(config, network, device, compiled)
    height, width, channels = image_shape
    size = config.train.batch_size
    batches = []
    for _ in range(4):  # several, as in training, but few enough for the cache
        images = torch.rand(size, channels, height, width).to(**place)
        batches.append((images, torch.randint(model.num_classes, (size,), device=device)))

    def run(steps: int) -> None:
        for index in range(steps):
            step(*batches[index % len(batches)])
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def configure(backend: str, threads: int) -> torch.device:
    """Makes process-wide settings and returns the PyTorch device that JAX uses.

    Args:
        backend: JAX's, "cpu" or "gpu".
        threads: CPU cores to use.

    Raises:
        UserError: this PyTorch cannot use that device.
    """
    torch.set_num_threads(threads)
    if backend == "cpu":
        return torch.device("cpu")
    if backend != "gpu":
        raise UserError(f"--torch compares on CPUs and GPUs, but JAX runs on {backend}; leave out --torch")
    if not torch.cuda.is_available():
        raise UserError("JAX runs on a GPU, but PyTorch sees none; install PyTorch with CUDA or set JAX_PLATFORMS=cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32, JAX's default on GPUs
    return torch.device("cuda")
