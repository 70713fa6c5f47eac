"""Optimizers on a shortened `configs/cnn.py`, each with the one-cycle schedule and a peak that suits it.

    python -m imgclf_jax.sweep --config=configs/ablations/optimizer.py --seeds=6 --workdir=runs/optimizer

Six variants: "sgd" is the optimizer of `configs/cnn.py` (Nesterov momentum), "sgd_heavy_ball" has ordinary momentum,
"sgd_plain" has none and ten times the learning rate, so that its steps are as long; then adam, adamw and rmsprop.
Weight decay is that of `configs/cnn.py` for sgd, decoupled for adamw, and off for adam and rmsprop, which would
rescale it. Everything else is equal. Each run trains a network of a quarter of the width for 8 epochs of 5,000 images,
a ninth of them; validation and test splits are whole.

The learning rates are usual values and not tuned, so a small difference says more about them than about the optimizer.
To tune one of them: `--config=configs/cnn.py --vary=optim.name=adam --vary=optim.learning_rate=5e-4,1e-3,2e-3,4e-3`.

Cost: 624 steps of 64 images a run; 36 runs with 6 seeds.
"""

from imgclf_jax import sweep


def get_sweep():
    return sweep.Sweep(
        "cnn",
        sweep.variants(
            {
                "sgd": {"optim.name": "sgd", "optim.learning_rate": 0.05},
                "sgd_heavy_ball": {"optim.name": "sgd", "optim.learning_rate": 0.05, "optim.nesterov": False},
                "sgd_plain": {"optim.name": "sgd", "optim.learning_rate": 0.5, "optim.momentum": 0.0},
                "adam": {"optim.name": "adam", "optim.learning_rate": 2e-3, "optim.weight_decay": 0.0},
                "adamw": {"optim.name": "adamw", "optim.learning_rate": 2e-3, "optim.weight_decay": 0.05},
                "rmsprop": {
                    "optim.name": "rmsprop",
                    "optim.learning_rate": 1e-3,
                    "optim.momentum": 0.0,
                    "optim.b2": 0.99,
                    "optim.weight_decay": 0.0,
                },
            }
        ),
        changes={
            "data.train_split": "train[:5000]",
            "model.widths": (16, 32, 64),
            "model.hidden": (64,),
            "optim.warmup_epochs": 2.0,
            "train.epochs": 8.0,
            "eval.every_epochs": 2.0,
            "eval.train": False,
            "log.tensorboard": False,
        },
    )
