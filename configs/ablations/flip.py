"""Alternating flips against random flips: a finding of Jordan (2024), arXiv 2404.00498, on a small network.

    python -m imgclf_jax.sweep --config=configs/ablations/flip.py --seeds=12 --workdir=runs/flip

There, an image that was mirrored in one epoch is not mirrored in the next one, which raises the accuracy on CIFAR-10 in
runs of a few epochs. Here the network is `configs/cnn.py` with a quarter of the width, which sees
10,000 images for 6 epochs. Three variants: "random" (the baseline), "alternating", and "none".

Cost: 936 steps of 64 images a run; 36 runs with 12 seeds.
"""

from imgclf_jax import sweep


def get_sweep():
    return sweep.Sweep(
        "cnn",
        sweep.variants(
            {
                "random": {},
                "alternating": {"augment.flip_mode": "alternating"},
                "none": {"augment.flip": False},
            }
        ),
        changes={
            "data.train_split": "train[:10000]",
            "model.widths": (16, 32, 64),
            "model.hidden": (64,),
            # Other augmentation would hide the difference: only the crop and the flip stay.
            "augment.hue": 0.0,
            "augment.contrast": (),
            "augment.brightness": 0.0,
            "augment.saturation": (),
            "optim.warmup_epochs": 1.5,
            "train.epochs": 6.0,
            "eval.every_epochs": 2.0,
            "eval.train": False,
            "log.tensorboard": False,
        },
    )
