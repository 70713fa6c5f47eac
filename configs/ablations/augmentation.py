"""What each ingredient of the augmentation in `configs/cnn.py` contributes: one at a time is off, the rest stays.

    python -m imgclf_jax.sweep --config=configs/ablations/augmentation.py --seeds=5 --workdir=runs/augmentation

Eight variants: "all" is the augmentation of `configs/cnn.py`, "no_NAME" lacks one ingredient, and "none" lacks all of
them. The optimizer, the schedule and the 12 epochs are those of `configs/cnn.py`. To be short, each run trains a
network of half the width on 5,000 images, a ninth of them. With so few images, a network without augmentation
overfits, which is where augmentation matters. Validation and test splits are whole. The order of the ingredients may
hold for the full config; the sizes of the differences need not. Repeat what is surprising with
`--config.data.train_split="train[:45000]"`.

"no_crop" trains and evaluates on whole images of 32×32 pixels instead of 24×24, and takes 1.8 times the arithmetic.

Cost: 936 steps of 64 images a run, about a minute on 2 idle CPU cores; 40 runs with 5 seeds.
"""

from typing import Any

from imgclf_jax import sweep

INGREDIENTS: dict[str, dict[str, Any]] = {
    "crop": {"augment.crop": ()},
    "flip": {"augment.flip": False},
    "hue": {"augment.hue": 0.0},
    "contrast": {"augment.contrast": ()},
    "brightness": {"augment.brightness": 0.0},
    "saturation": {"augment.saturation": ()},
}


def get_sweep():
    none = {field: off for changes in INGREDIENTS.values() for field, off in changes.items()}
    return sweep.Sweep(
        "../cnn.py",
        sweep.minus_one(INGREDIENTS) + sweep.variants({"none": none}),
        changes={
            "data.train_split": "train[:5000]",
            "model.widths": (32, 64, 128),
            "model.hidden": (128, 64),
            "eval.every_epochs": 4,
            "eval.train": False,
            "log.tensorboard": False,
        },
    )
