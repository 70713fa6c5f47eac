"""scripts/torch_networks.py computes the same as our models; scripts/bench_step.py runs and counts correctly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from imgclf_jax import models
from imgclf_jax.config import default
from imgclf_jax.devices import parallel
from imgclf_jax.training.experiment import build
from imgclf_jax.training.validate import Plan

PROJECT = Path(__file__).parent.parent
SHAPE = (18, 22, 3)  # not square, so that swapped axes are noticed
OPTIONS = [
    {"name": "softmax"},
    {"name": "mlp", "hidden": (12, 8), "dropout": 0.5},
    {"name": "cnn", "widths": (4, 6), "hidden": (8,)},
    {"name": "cnn", "widths": (4, 6), "hidden": (8,), "norm": "batch", "dropout": 0.5},
    {"name": "tutorial_cnn", "widths": (4, 5, 6), "hidden": (8,)},
    {"name": "small_cnn", "widths": (4, 5), "hidden": (8,)},
]


@pytest.fixture(params=OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def config(request):
    config = default()
    config.parallel.devices = 1
    config.train.update(steps=2, batch_size=4)
    config.model.update(request.param)
    return config


@pytest.fixture
def torch_networks(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(PROJECT / "scripts"))
    import torch_networks

    return torch_networks


def test_network_is_the_same_in_torch(config, torch_networks):
    model = models.create(config.model, 5)
    random = np.random.default_rng(0)
    images = random.random((4, *SHAPE), np.float32)
    draw = lambda leaf: random.uniform(0.1, 1, leaf.shape).astype(np.float32)  # noqa: E731
    variables = jax.tree.map(draw, model.init(jax.random.key(0), images))
    network = torch_networks.create(model, SHAPE)
    torch_networks.load(network, variables, SHAPE)
    theirs = network.eval()(torch_networks.torch.from_numpy(images.transpose(0, 3, 1, 2))).detach().numpy()
    np.testing.assert_allclose(model.apply(variables, images), theirs, rtol=1e-4)


def test_flops_are_those_that_torch_counts(config, torch_networks):
    from torch.utils.flop_counter import FlopCounterMode

    # Sides that pooling halves evenly: PyTorch also computes the pixels that no window reads.
    shape = (30, 38, 3) if config.model.name in ("tutorial_cnn", "small_cnn") else (16, 24, 3)
    plan = Plan(2, 2, 0, 0, 0, 1, 8, 0)
    experiment = build(config, plan, shape, ("a", "b", "c", "d", "e"), parallel.create(config))
    cpu = torch_networks.torch.device("cpu")
    options = {"channels_last": True, "compiled": False}
    run = torch_networks.training(config, experiment.model, shape, cpu, **options)
    with FlopCounterMode(display=False) as counter:
        run(1)
    assert experiment.network_flops()[1] == counter.get_total_flops()


def test_script_runs(tmp_path):
    command = [sys.executable, "scripts/bench_step.py", "--config=configs/softmax.py", "--config.data.source=sample"]
    result = tmp_path / "result.json"
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    options = ["--rounds=1", "--steps=1", f"--json={result}"]
    done = subprocess.run(
        [*command, *options], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("network step: ")
    cases = json.loads(result.read_text())["cases"]
    # Forward and the kernel's gradient; the images need none.
    assert cases["network step"]["flops"] == 2 * 2 * 100 * 32 * 32 * 3 * 10
    assert all(case["median"] > 0 for case in cases.values())
