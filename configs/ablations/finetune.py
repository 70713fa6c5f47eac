"""What a network gains from CIFAR-10 before it learns cars and elephants from 400 photos of 32×32 pixels.

    python -m imgclf_jax.sweep --config=configs/ablations/finetune.py --seeds=5 --workdir=runs/finetune \
        --config.data.dir=PHOTOS

Three variants of `configs/finetune.py`, whose docstring says how to train the ancestor `runs/cnn`: "scratch" begins
with random parameters, "finetune" with those of the ancestor; in "frozen", the convolutions and their normalization
stay as they were. Network, schedule and data are equal. The learning rate is not tuned for any of them. The seeds
repeat the fine-tuning; all runs have the same ancestor.

Cost: 144 steps of 32 images a run; 15 runs with 5 seeds.
"""

from imgclf_jax import sweep


def get_sweep():
    return sweep.Sweep(
        "finetune",
        sweep.variants(
            {
                "scratch": {"init.run": ""},
                "finetune": {},
                "frozen": {"init.freeze": ("conv*", "norm*")},
            }
        ),
        changes={"log.tensorboard": False, "log.every_steps": 24},
    )
