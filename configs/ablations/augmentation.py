"""What each ingredient of the augmentation in `configs/cnn.py` contributes: one at a time is off, the rest stays.

    python -m imgclf_jax.sweep --config=configs/ablations/augmentation.py --seeds=6 --workdir=runs/augmentation

Eight variants: "all" is the augmentation of `configs/cnn.py`, "no_NAME" lacks one ingredient, and "none" lacks all of
them. Everything else is equal. To be short, each run trains a network of a quarter of the width on 2,500 images, for 30
epochs: augmentation matters if a network sees the same images often enough to learn them by heart. (In 12 epochs of
5,000 images, "all" does not get far enough to profit from it.) Validation and test splits are whole. The order of the
ingredients may hold for the full config; the sizes of the differences need not.

"no_crop" and "none" train and evaluate on whole images of 32×32 pixels instead of 24×24, which takes 1.8 times the
arithmetic.

Cost: 1,170 steps of 64 images a run; 48 runs with 6 seeds.
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
        "cnn",
        sweep.minus_one(INGREDIENTS) + sweep.variants({"none": none}),
        changes={
            "data.train_split": "train[:2500]",
            "model.widths": (16, 32, 64),
            "model.hidden": (64,),
            "optim.warmup_epochs": 8.0,
            "train.epochs": 30.0,
            "eval.every_epochs": 5.0,
            "eval.train": False,
            "log.tensorboard": False,
        },
    )
