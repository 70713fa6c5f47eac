"""Networks of `imgclf_jax.models` in PyTorch for `compare_torch.py`: the same functions of the same parameters.

Modules are named as in Flax, so `convert` needs no table of names. `torch_networks.py` has the versions that are timed.
"""

import math
from typing import Any

import flax
import flax.linen as flax_nn
import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional

from imgclf_jax import models
from imgclf_jax.errors import UserError
from imgclf_jax.training import optim


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization whose running variance is the mean of the biased variances of the batches, as ours.

    PyTorch's own multiplies the variance of a batch by n / (n - 1) for the running one, where n is the number of values
    of a channel in the batch.
    """

    def __init__(self, channels: int):
        """Makes the layer for `channels` channels."""
        super().__init__(channels, eps=1e-5, momentum=0.1)  # Flax counts the other way: momentum 0.9

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [B, C, H, W] -> the same shape."""
        if not self.training:
            return super().forward(x)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        # Momentum 1 stores the statistics of the batch in the two tensors.
        y = functional.batch_norm(x, mean, var, self.weight, self.bias, True, 1.0, self.eps)
        count = x.numel() // x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * ((count - 1) / count), self.momentum)
        return y


def normalization(kind: str, channels: int) -> nn.Module:
    """The layer that `imgclf_jax.models.norm.normalize` makes for `kind`."""
    return BatchNorm(channels) if kind == "batch" else nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-5)


def convolution(channels: int, features: int, side: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that pads by half a kernel."""
    return nn.Conv2d(channels, features, side, stride, padding=side // 2, bias=bias)


class CNN(nn.ModuleDict):
    """float32 [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, model: models.cnn.CNN, image_shape: tuple[int, int, int]):
        """Makes the layers of `model` for images (H, W, C)."""
        super().__init__()
        height, width, channels = image_shape
        self.model = model
        for index, features in enumerate(model.widths, start=1):
            self[f"conv{index}"] = convolution(channels, features, 3, bias=model.norm != "batch")
            if model.norm == "batch":
                self[f"norm{index}"] = BatchNorm(features)
            channels = features
        units = [channels * math.prod(side // 2 ** len(model.widths) for side in (height, width)), *model.hidden]
        for index in range(1, len(units)):
            self[f"dense{index}"] = nn.Linear(units[index - 1], units[index])
        self["output"] = nn.Linear(units[-1], model.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the logits."""
        for index in range(1, len(self.model.widths) + 1):
            x = functional.max_pool2d(self[f"conv{index}"](x), 2)
            x = functional.relu(self[f"norm{index}"](x) if self.model.norm == "batch" else x)
        x = x.permute(0, 2, 3, 1).flatten(1)  # (H, W, C), the order of our dense layer
        for index in range(1, len(self.model.hidden) + 1):
            x = functional.relu(self[f"dense{index}"](x))
        return self["output"](x)


class Block(nn.ModuleDict):
    """A block of a ResNet: float32 [B, C, H, W] -> [B, last, H / stride, W / stride]."""

    def __init__(self, channels: int, convolutions: tuple[tuple[int, int], ...], stride: int, norm: str):
        """See `imgclf_jax.models.resnet.Block`."""
        super().__init__()
        self.count = len(convolutions)
        before, left = channels, stride
        for index, (features, side) in enumerate(convolutions, start=1):
            self[f"conv{index}"] = convolution(before, features, side, left if side == 3 else 1)
            self[f"norm{index}"] = normalization(norm, features)
            before, left = features, 1 if side == 3 else left
        if stride > 1 or channels != before:
            self["conv_shortcut"] = convolution(channels, before, 1, stride)
            self["norm_shortcut"] = normalization(norm, before)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the block."""
        y = x
        for index in range(1, self.count + 1):
            y = self[f"norm{index}"](self[f"conv{index}"](y))
            y = functional.relu(y) if index < self.count else y
        if "conv_shortcut" in self:
            x = self["norm_shortcut"](self["conv_shortcut"](x))
        return functional.relu(x + y)


class ResNet(nn.ModuleDict):
    """float32 [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, model: models.resnet.ResNet18, image_shape: tuple[int, int, int]):
        """Makes the layers of `model` for images (H, W, C)."""
        super().__init__()
        self.imagenet = model.stem == "imagenet"
        self["conv"] = convolution(image_shape[-1], model.width, *((7, 2) if self.imagenet else (3, 1)))
        self["norm"] = normalization(model.norm, model.width)
        self.blocks, channels = [], model.width
        for stage, blocks in enumerate(model.stages):
            convolutions = model.convolutions(model.width * 2**stage)
            for index in range(blocks):
                self.blocks.append(f"stage{stage + 1}_block{index + 1}")
                self[self.blocks[-1]] = Block(channels, convolutions, 2 if stage and not index else 1, model.norm)
                channels = convolutions[-1][0]
        self["output"] = nn.Linear(channels, model.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the logits."""
        x = functional.relu(self["norm"](self["conv"](x)))
        x = functional.max_pool2d(x, 3, 2, 1) if self.imagenet else x
        for name in self.blocks:
            x = self[name](x)
        return self["output"](x.mean((2, 3)))


class WideResNet(nn.ModuleDict):
    """float32 [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, model: models.wide_resnet.WideResNet, image_shape: tuple[int, int, int]):
        """Makes the layers of `model` for images (H, W, C)."""
        super().__init__()
        self["conv"] = convolution(image_shape[-1], 16, 3)
        self.blocks, channels = [], 16
        for stage in range(3):
            features = 16 * model.widen * 2**stage
            for index in range((model.depth - 4) // 6):
                name, stride = f"stage{stage + 1}_block{index + 1}", 2 if stage and not index else 1
                self.blocks.append(name)
                self[f"{name}_norm1"] = normalization(model.norm, channels)
                if channels != features:
                    self[f"{name}_shortcut"] = convolution(channels, features, 1, stride)
                self[f"{name}_conv1"] = convolution(channels, features, 3, stride)
                self[f"{name}_norm2"] = normalization(model.norm, features)
                self[f"{name}_conv2"] = convolution(features, features, 3)
                channels = features
        self["norm"] = normalization(model.norm, channels)
        self["output"] = nn.Linear(channels, model.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the logits."""
        x = self["conv"](x)
        for name in self.blocks:
            y = functional.relu(self[f"{name}_norm1"](x))
            if f"{name}_shortcut" in self:
                x = self[f"{name}_shortcut"](y)
            y = functional.relu(self[f"{name}_norm2"](self[f"{name}_conv1"](y)))
            x = x + self[f"{name}_conv2"](y)
        return self["output"](functional.relu(self["norm"](x)).mean((2, 3)))


class Attention(nn.ModuleDict):
    """Self-attention: float32 [B, T, width] -> the same shape."""

    def __init__(self, width: int, heads: int):
        """Makes the four projections."""
        super().__init__({name: nn.Linear(width, width) for name in ("query", "key", "value", "out")})
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attends from every token to all of them."""
        query, key, value = (self[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in list(self)[:3])
        y = functional.scaled_dot_product_attention(query, key, value)
        return self["out"](y.transpose(1, 2).flatten(2))


class ViT(nn.ModuleDict):
    """float32 [B, C, H, W] -> logits [B, classes]."""

    def __init__(self, model: models.vit.ViT, image_shape: tuple[int, int, int]):
        """Makes the layers of `model` for images (H, W, C)."""
        super().__init__()
        self.model, (width, heads) = model, model.sizes()
        height, columns, channels = image_shape
        tokens = height * columns // model.patch**2
        self["embed"] = nn.Linear(model.patch**2 * channels, width)
        if model.pool == "token":
            self.token = nn.Parameter(torch.zeros(1, 1, width))
            tokens += 1
        self.positions = nn.Parameter(torch.zeros(1, tokens, width))
        for index in range(1, model.depth + 1):
            self[f"block{index}_norm1"] = nn.LayerNorm(width, eps=1e-6)
            self[f"block{index}_attention"] = Attention(width, heads)
            self[f"block{index}_norm2"] = nn.LayerNorm(width, eps=1e-6)
            self[f"block{index}_mlp1"] = nn.Linear(width, 4 * width)
            self[f"block{index}_mlp2"] = nn.Linear(4 * width, width)
        self["norm"] = nn.LayerNorm(width, eps=1e-6)
        self["output"] = nn.Linear(width, model.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the logits."""
        batch, channels, height, columns = x.shape
        side, pool = self.model.patch, self.model.pool
        x = x.reshape(batch, channels, height // side, side, columns // side, side)
        x = self["embed"](x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels))
        if pool == "token":
            x = torch.cat([self.token.expand(batch, -1, -1), x], dim=1)
        x = x + self.positions
        for index in range(1, self.model.depth + 1):
            name = f"block{index}"
            x = x + self[f"{name}_attention"](self[f"{name}_norm1"](x))
            x = x + self[f"{name}_mlp2"](functional.gelu(self[f"{name}_mlp1"](self[f"{name}_norm2"](x))))
        x = self["norm"](x)
        return self["output"](x[:, 0] if pool == "token" else x.mean(1))


def create(model: flax_nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """Makes the PyTorch version of `model`, with PyTorch's own initial parameters.

    Args:
        model: an unbound network of `imgclf_jax.models`.
        image_shape: (H, W, C) of the network's input.

    Returns:
        A module: images float32 [B, C, H, W] -> logits [B, classes].

    Raises:
        UserError: this model or one of its options has no PyTorch version here.
    """
    if getattr(model, "dropout", 0) or getattr(model, "stochastic_depth", 0):
        raise UserError("dropout and stochastic depth draw random masks, which cannot be the same in PyTorch; set to 0")
    if getattr(model, "head", "softmax") != "softmax":
        raise UserError('only model.head="softmax" is compared')
    match model:
        case models.cnn.CNN():
            return CNN(model, image_shape)
        case models.resnet.ResNet18():  # the base of all ResNets
            return ResNet(model, image_shape)
        case models.wide_resnet.WideResNet():
            return WideResNet(model, image_shape)
        case models.vit.ViT():
            return ViT(model, image_shape)
    raise UserError(f"model {type(model).__name__} has no PyTorch version; choose cnn, a resnet, wide_resnet or vit")


def convert(tree: Any) -> dict[str, torch.Tensor]:
    """Converts parameters, their gradients or batch statistics to the names and layouts of the PyTorch network.

    Args:
        tree: nested dicts of arrays, as in `TrainState.params` and `TrainState.batch_stats`.

    Returns:
        float32 tensors by name.
    """
    return {_name(path): torch.from_numpy(_layout(path, np.asarray(leaf)).copy()) for path, leaf in _leaves(tree)}


def decaying(params: Any, mask: str) -> set[str]:
    """Returns the names of the PyTorch parameters that decay in our optimizer.

    Args:
        params: `TrainState.params`.
        mask: `optim.decay_mask`.
    """
    kernels = optim.kernels(params)
    return {_name(path) for path, decays in _leaves(kernels) if mask == "all" or decays}


def _leaves(tree):
    return flax.traverse_util.flatten_dict(tree).items()


def _name(path):
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join([*path[:-1], names.get(path[-1], path[-1])])


def _layout(path, value):
    layer, kind = path[-2:] if len(path) > 1 else ("", path[0])
    if kind == "bias":
        return value.reshape(-1)  # of projections to several heads: [heads, features]
    if kind != "kernel":
        return value
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)  # HWIO -> OIHW
    # Kernels of attention are [width, heads, features] or, of the output, [heads, features, width].
    return (value.reshape(-1, value.shape[-1]) if layer == "out" else value.reshape(len(value), -1)).T


def load(network: nn.Module, params: Any, batch_stats: Any) -> None:
    """Copies our parameters and batch statistics into the PyTorch network of the same model."""
    values = convert(params) | convert(batch_stats)
    with torch.no_grad():
        counts = {name: value for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")}
    network.load_state_dict(values | counts)


def create_optimizer(config: ConfigDict, network: nn.Module, decays: set[str]) -> torch.optim.Optimizer:
    """Makes the optimizer of `config.optim`. The learning rate of each step must be set in its groups.

    Args:
        config: the section `optim`.
        network: the network to optimize.
        decays: names of the parameters that decay.

    Raises:
        UserError: PyTorch has no optimizer that computes the same.
    """
    parameters = dict(network.named_parameters())
    groups = [
        {"params": [parameters[name] for name in sorted(decays)], "weight_decay": config.weight_decay},
        {"params": [value for name, value in parameters.items() if name not in decays], "weight_decay": 0.0},
    ]
    rate, betas = config.learning_rate, (config.b1, config.b2)
    match config.name:
        case "sgd":
            nesterov = config.nesterov and config.momentum > 0
            return torch.optim.SGD(groups, rate, config.momentum, nesterov=nesterov)
        case "adam":
            return torch.optim.Adam(groups, rate, betas, config.eps)
        case "adamw":
            return torch.optim.AdamW(groups, rate, betas, config.eps)
    raise UserError(f"optim.name={config.name!r} is not the same in PyTorch; choose sgd, adam or adamw")


def clip(network: nn.Module, largest: float) -> None:
    """Scales the gradients so that their global norm is at most `largest`.

    PyTorch's own function adds 1e-6 to the norm.
    """
    gradients = [parameter.grad for parameter in network.parameters()]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]))
    if norm > largest:
        for gradient in gradients:
            gradient.mul_(largest / norm)
