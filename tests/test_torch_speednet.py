"""scripts/torch_speednet.py: the published network and training in PyTorch."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch_speednet  # noqa: E402
from torch_speednet import Recipe, Shape, SpeedNet, Training  # noqa: E402

SMALL = Shape(classes=3, widths=(8, 12, 12), pool="global")
RECIPE = Recipe(batch_size=8, epochs=2.0, whiten_epochs=0.5)


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 32)
    # The class is the color.
    noise = random.integers(0, 120, (32, 32, 32, 3))
    return (noise + 130 * (labels[:, None, None, None] == np.arange(3))).astype(np.uint8), labels


@pytest.mark.parametrize("size", [24, 28, 32])
@pytest.mark.parametrize("depth", [2, 3])
def test_every_size_fits(size, depth):
    network = SpeedNet(SMALL._replace(depth=depth))
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 3)
    kernels = [value for value in network.parameters() if value.ndim == 4 and value.requires_grad]
    assert len(kernels) == 3 * depth


def test_whitened_patches_are_uncorrelated():
    network = SpeedNet(SMALL)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(64, 3, 34, 34), 3, 1)
    network.whiten_by(smooth, eps=0.0)
    with torch.no_grad():
        network.whiten.bias.zero_()
        outputs = network.whiten(smooth).permute(0, 2, 3, 1).reshape(-1, 24)
    moment = outputs.T @ outputs / len(outputs)
    eye = torch.eye(12)
    torch.testing.assert_close(
        moment, torch.cat([torch.cat([eye, -eye]), torch.cat([-eye, eye])], 1), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_updates_are_close_to_orthogonal(shape):
    values = torch.linalg.svdvals(torch_speednet.orthogonal(torch.randn(shape)).float())
    assert values.min() > 0.3 and values.max() < 1.6


def test_crops_are_windows_of_the_mirrored_surroundings():
    images = torch.arange(4 * 5 * 5 * 2, dtype=torch.uint8).reshape(4, 5, 5, 2)
    padded = torch_speednet.padded(images, 2)
    expected = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(padded.numpy(), expected)
    crops = torch_speednet.cropped(padded, 5)
    for crop, whole in zip(crops, padded, strict=True):
        windows = [whole[y : y + 5, x : x + 5] for y in range(5) for x in range(5)]
        assert any(torch.equal(crop, window) for window in windows)


def test_images_are_mirrored_in_every_second_epoch(images):
    training = Training(*images, shape=SMALL, recipe=RECIPE._replace(padding=0))
    pixels = torch.tensor(images[0])
    epochs = []
    for _ in range(3):
        training.begin_epoch()
        epochs.append([torch.equal(one, other) for one, other in zip(training._images, pixels, strict=True)])
    assert epochs[0] == epochs[2] == [not kept for kept in epochs[1]] and 0 < sum(epochs[0]) < 32


@pytest.mark.parametrize("precision", torch_speednet.PRECISIONS)
def test_it_learns_and_freezes_the_whitening(images, precision):
    training = Training(*images, shape=SMALL, recipe=RECIPE._replace(epochs=6.0), precision=precision)
    kernel, biases = training.network.whiten.weight.clone(), []
    for _ in range(6):
        seconds = training.epoch(24)
        biases.append(training.network.whiten.bias.detach().clone())
    assert seconds > 0
    assert torch.equal(training.network.whiten.weight, kernel)
    assert torch.equal(biases[0], biases[-1])
    assert training.accuracy(*images) > 0.8
