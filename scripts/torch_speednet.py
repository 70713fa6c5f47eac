"""The network of the airbench family and its training in PyTorch, as an expert runs them on a CPU.

The structure and the numbers are those of airbench94_muon (Jordan, https://github.com/KellerJordan/cifar10-airbench):
a frozen whitening convolution, three groups of convolutions, Muon for their kernels and SGD for everything else. Images
and kernels are kept with the channels last, whole epochs are augmented at once, and the products are in bfloat16, the
only half precision for which CPUs have matrix units. `torch_networks.py` uses the network and the optimizer for single
steps, `bench_peers.py` times whole epochs.
"""

import math
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as flax_nn
import numpy as np
import torch
import torch_zoo
from torch import nn
from torch.nn import functional

from imgclf_jax.errors import UserError
from imgclf_jax.models import speednet

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10, as published with the recipe
PRECISIONS = ("float32", "autocast", "half")
POOLS = ("window", "global")


class Shape(NamedTuple):
    """The structure of a network.

    Attributes:
        classes: number of logits.
        widths: output channels of the groups.
        depth: convolutions in a group, 2 or 3. With 3, the input of the second is added before the last activation.
        activation: "gelu" (exact) or "silu", in the groups. After the whitening convolution it is always GELU.
        pool: the last pooling, "window" (3×3) or "global", which fits images of any size.
        divisor: what the logits are divided by; 0: the last width.
        momentum: the weight of the old running statistics of batch normalization.
    """

    classes: int = 10
    widths: tuple[int, ...] = (64, 256, 256)
    depth: int = 2
    activation: str = "gelu"
    pool: str = "window"
    divisor: float = 0.0
    momentum: float = 0.6


class Recipe(NamedTuple):
    """The numbers of a training. The rates of SGD are for sums of losses over a batch.

    Attributes:
        batch_size: images per step.
        epochs: length of a run.
        whiten_epochs: for how long the bias of the whitening convolution is trained.
        kernel_rate, kernel_momentum: of Muon.
        bias_rate, output_rate, momentum: of SGD.
        decay: added to the gradients of what SGD updates, relative to their rate.
        smoothing: label smoothing.
        padding: pixels by which crops are shifted at most, in each direction.
    """

    batch_size: int = 2000
    epochs: float = 8.0
    whiten_epochs: float = 3.0
    kernel_rate: float = 0.24
    kernel_momentum: float = 0.6
    bias_rate: float = 0.053
    output_rate: float = 0.67
    momentum: float = 0.85
    decay: float = 2e-6 * 2000
    smoothing: float = 0.2
    padding: int = 2


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization with a trained bias and the fixed scale 1."""

    def __init__(self, channels: int, momentum: float):
        """Makes the layer; `momentum` is the weight of the old statistics."""
        super().__init__(channels, eps=1e-12, momentum=1 - momentum)
        self.weight.requires_grad_(False)


class Group(nn.Module):
    """[B, C, H, W] -> [B, width, H // 2, W // 2]."""

    def __init__(self, channels: int, width: int, shape: Shape):
        """Makes `shape.depth` convolutions, all but the first of `width` input channels."""
        super().__init__()
        self.depth, self.act = shape.depth, getattr(functional, shape.activation)
        for index in range(1, shape.depth + 1):
            self.add_module(f"conv{index}", nn.Conv2d(channels, width, 3, padding=1, bias=False))
            self.add_module(f"norm{index}", BatchNorm(width, shape.momentum))
            channels = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the group."""
        x = self.act(self.norm1(functional.max_pool2d(self.conv1(x), 2)))
        y = self.norm2(self.conv2(x))
        if self.depth == 3:
            y = self.norm3(self.conv3(self.act(y))) + x
        return self.act(y)


class SpeedNet(nn.Module):
    """Normalized images [B, 3, H, W] -> logits [B, classes]. The modules have the names of our network's."""

    def __init__(self, shape: Shape):
        """Makes the layers, with initial parameters as published, but for the whitening, which needs images."""
        super().__init__()
        self.shape = shape
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.groups: list[str] = []
        channels = 24
        for index, width in enumerate(shape.widths, start=1):
            self.groups.append(f"group{index}")
            self.add_module(self.groups[-1], Group(channels, width, shape))
            channels = width
        self.output = nn.Linear(channels, shape.classes, bias=False)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draws new initial parameters; kernels begin as the identity as far as they have as many channels."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | BatchNorm):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d) and module is not self.whiten:
                nn.init.dirac_(module.weight[: module.in_channels])
        self.output.weight /= self.output.weight.std()

    @torch.no_grad()
    def whiten_by(self, images: torch.Tensor, eps: float = 5e-4) -> None:
        """Sets the first kernel to the eigenvectors of the second moment of 2×2 patches, and to their negatives.

        Args:
            images: normalized, [N, 3, H, W].
            eps: added to the eigenvalues, by whose roots the vectors are divided.
        """
        patches = functional.unfold(images.float(), 2).transpose(1, 2).reshape(-1, 12)
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        kernels = (vectors / (values + eps).sqrt()).T.reshape(12, 3, 2, 2)
        self.whiten.weight.copy_(torch.cat([kernels, -kernels]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes the logits."""
        x = functional.gelu(self.whiten(x))
        for name in self.groups:
            x = getattr(self, name)(x)
        x = functional.max_pool2d(x, 3 if self.shape.pool == "window" else x.shape[2:])
        return self.output(x.flatten(1)) / (self.shape.divisor or self.shape.widths[-1])


def is_ours(model: flax_nn.Module) -> bool:
    """Whether a model is our `SpeedNet`."""
    return isinstance(model, speednet.SpeedNet)


def of(model: flax_nn.Module) -> Shape:
    """Returns the structure of our network, an unbound `SpeedNet`. Raises `UserError` if the model is another one."""
    if not is_ours(model):
        raise UserError(f"model {type(model).__name__}: the published training is that of speednet")
    known: Any = model
    divisor = 1 / known.logit_scale if known.logit_scale else 0.0
    options = known.depth, known.activation, known.pool, divisor, known.norm_momentum
    return Shape(known.num_classes, tuple(known.widths), *options)


def load(network: SpeedNet, variables: dict[str, Any]) -> None:
    """Copies our "params" and "batch_stats" into the PyTorch network of the same model."""
    values = torch_zoo.convert(variables["params"]) | torch_zoo.convert(variables["batch_stats"])
    kept = network.state_dict()
    scales = {name: value for name, value in kept.items() if ".norm" in name and name.endswith("weight")}
    counts = {name: value for name, value in kept.items() if name.endswith("num_batches_tracked")}
    network.load_state_dict(values | scales | counts)


class Muon(torch.optim.Optimizer):
    """Muon as in airbench94_muon: updates are orthogonal, and before each the kernel's norm is set to sqrt(C_out)."""

    def __init__(self, params: Iterable[torch.Tensor], lr: float, momentum: float):
        """Keeps the kernels [C_out, C_in, h, w] to update."""
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Updates all kernels that have a gradient."""
        for group in self.param_groups:
            for kernel in (kernel for kernel in group["params"] if kernel.grad is not None):
                kept = self.state[kernel].setdefault("momentum", torch.zeros_like(kernel.grad))
                kept.mul_(group["momentum"]).add_(kernel.grad)
                direction = kernel.grad.add(kept, alpha=group["momentum"]).flatten(1)
                kernel.mul_(math.sqrt(len(kernel)) / kernel.norm())
                kernel.add_(orthogonal(direction).view(kernel.shape), alpha=-group["lr"])


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Moves the singular values of a matrix [m, n] close to 1, in bfloat16, by three Newton-Schulz iterations."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = len(matrix) <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(3):
        product = x @ x.T
        x = a * x + torch.addmm(product, product, product, beta=b, alpha=c) @ x
    return x if wide else x.T


class Optimizers:
    """Muon for the convolutions of the groups, Nesterov's SGD for everything else."""

    def __init__(self, network: SpeedNet, recipe: Recipe):
        """Makes both optimizers."""
        parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        kernels = [value for value in parameters.values() if value.ndim == 4]
        biases = [value for name, value in parameters.items() if ".norm" in name]
        rates = [(network.whiten.bias, recipe.bias_rate), (biases, recipe.bias_rate)]
        rates += [(network.output.weight, recipe.output_rate)]
        # PyTorch multiplies the decay by the rate.
        groups = [{"params": params, "lr": rate, "weight_decay": recipe.decay / rate} for params, rate in rates]
        self._sgd = torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=True, fused=True)
        self._muon = Muon(kernels, recipe.kernel_rate, recipe.kernel_momentum)
        self._groups = [*self._sgd.param_groups, *self._muon.param_groups]  # the first is the whitening's
        self._peaks = [group["lr"] for group in self._groups]

    def schedule(self, whiten: float, others: float) -> None:
        """Sets the rates to fractions of their peaks."""
        for index, (group, peak) in enumerate(zip(self._groups, self._peaks, strict=True)):
            group["lr"] = peak * (others if index else whiten)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients."""
        self._sgd.zero_grad(set_to_none)
        self._muon.zero_grad(set_to_none)

    def step(self) -> None:
        """Updates all parameters that have a gradient."""
        self._sgd.step()
        self._muon.step()


class Training:
    """A training on images in memory, on the CPU.

    Attributes:
        network: the network.
        steps_per_epoch: whole batches in an epoch.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        shape: Shape | None = None,
        recipe: Recipe | None = None,
        precision: str = "autocast",
        compiled: bool = False,
        seed: int = 0,
    ):
        """Makes the network and pads the images.

        Args:
            images: uint8 [N, H, W, 3].
            labels: int [N].
            shape: of the network.
            recipe: the numbers.
            precision: "float32"; "autocast": float32 parameters, convolutions and products in bfloat16; "half":
                parameters in bfloat16 too, but for those of batch normalization. With "half", late updates are
                smaller than a bfloat16 can hold, so that it is for timing; the published recipe has float16.
            compiled: use `torch.compile`.
            seed: of the parameters, the order and the augmentation.
        """
        torch.manual_seed(seed)
        self._recipe, self._precision = recipe or Recipe(), precision
        self._padded = padded(torch.tensor(images), self._recipe.padding)
        network = SpeedNet(shape or Shape())
        network.whiten_by(normalized(torch.tensor(images[:5000]), torch.float32))
        self.network = network.to(memory_format=torch.channels_last)
        if precision == "half":
            for module in self.network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(torch.bfloat16)
        self._forward = torch.compile(self.network, dynamic=False) if compiled else self.network
        self._optimizers = Optimizers(self.network, self._recipe)
        self._labels = torch.tensor(labels).long()
        self._mirrored = torch.rand(len(images)) < 0.5
        self._side = images.shape[1]
        self.steps_per_epoch = len(images) // self._recipe.batch_size
        self._steps = math.ceil(self._recipe.epochs * self.steps_per_epoch)
        self._step = self._epoch = 0
        self._images, self._order = torch.empty(0), torch.empty(0)

    def begin_epoch(self) -> None:
        """Augments all images for the next epoch, and draws their order."""
        images = cropped(self._padded, self._side)
        # Each image is mirrored in its first epoch with probability 1/2, and from then on in every second epoch.
        mirrored = self._mirrored if self._epoch % 2 == 0 else ~self._mirrored
        self._images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
        self._order = torch.randperm(len(images))
        self._epoch += 1

    def take(self, steps: int, size: int) -> float:
        """Takes steps of the epoch that has begun, and returns the mean loss of an image in the last one.

        Args:
            steps: how many, at most `steps_per_epoch`.
            size: rows and columns that the network sees; the images are resized if it is another than theirs.
        """
        loss, batch = torch.zeros(()), self._recipe.batch_size
        self.network.train()
        for index in range(steps):
            chosen = self._order[index * batch : (index + 1) * batch]
            images = self._seen(self._images[chosen], size)
            loss = self._loss(images, self._labels[chosen])
            loss.backward()
            self._update()
        return loss.item() / batch

    def epoch(self, size: int) -> float:
        """Trains an epoch, and returns the seconds it took."""
        began = time.perf_counter()
        self.begin_epoch()
        self.take(self.steps_per_epoch, size)
        return time.perf_counter() - began

    @torch.no_grad()
    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Returns the accuracy on images uint8 [N, H, W, 3] at their own size."""
        self.network.eval()
        correct = 0
        for start in range(0, len(images), self._recipe.batch_size):
            part = slice(start, start + self._recipe.batch_size)
            with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "autocast"):
                logits = self.network(self._seen(torch.tensor(images[part]), images.shape[1]))
            correct += int((logits.argmax(1) == torch.tensor(labels[part])).sum())
        return correct / len(images)

    def _seen(self, images, size):
        """Normalizes uint8 [B, H, W, 3] and resizes: [B, 3, size, size] in the memory format "channels last"."""
        seen = normalized(images, torch.float32 if self._precision == "float32" else torch.bfloat16)
        if size != images.shape[1]:
            seen = functional.interpolate(seen, (size, size), mode="bilinear", align_corners=False)
        return seen

    def _loss(self, images, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "autocast"):
            logits = self._forward(images)
        smoothing = self._recipe.smoothing
        return functional.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum")

    def _update(self):
        whiten = 1 - self._step / math.ceil(self._recipe.whiten_epochs * self.steps_per_epoch)
        self._optimizers.schedule(max(whiten, 0), max(1 - self._step / self._steps, 0))
        self._optimizers.step()
        self._optimizers.zero_grad()
        self._step += 1
        if self._step == math.ceil(self._recipe.whiten_epochs * self.steps_per_epoch):
            self.network.whiten.bias.requires_grad_(False)  # No gradient: SGD and its momentum leave it alone.


def normalized(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, H, W] in the memory format "channels last", standardized by channel."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return ((images.float() - 255 * mean) / (255 * std)).to(dtype).permute(0, 3, 1, 2)


def padded(images: torch.Tensor, by: int) -> torch.Tensor:
    """Pads uint8 [N, H, W, C] on all four sides, mirrored without repeating the edge."""
    height, width = images.shape[1:3]
    rows, columns = (torch.arange(-by, side + by).abs() for side in (height, width))
    rows, columns = torch.minimum(rows, 2 * (height - 1) - rows), torch.minimum(columns, 2 * (width - 1) - columns)
    return images[:, rows][:, :, columns]


def cropped(images: torch.Tensor, side: int) -> torch.Tensor:
    """Cuts a window of a random place from each image: [N, H, W, C] -> [N, side, side, C]."""
    windows = images.unfold(1, side, 1).unfold(2, side, 1).permute(0, 1, 2, 4, 5, 3)  # A view of all of them.
    top, left = (torch.randint(places, (len(images),)) for places in windows.shape[1:3])
    return windows[torch.arange(len(images)), top, left]
