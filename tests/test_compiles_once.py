"""train.py: one program serves every dispatch, epoch, evaluation and checkpoint of a run."""

import collections

import pytest
from runs import SOFTMAX, rows, steps

pytest_plugins = ["run_fixtures"]

# 400 images: an epoch has 8 steps, in dispatches of 3, 1 and 2 steps between evaluations and checkpoints.
FLAGS = (
    *SOFTMAX,
    "--config.data.valid_split=train[5000:]",
    "--config.train.sampling=epoch",
    "--config.train.steps_per_dispatch=3",
    "--config.train.steps=0",
    "--config.eval.every_steps=4",
    "--config.checkpoint.every_steps=6",
    "--config.checkpoint.keep=20",
    "--config.log.every_steps=2",
)
RESIDENT, STREAMED = (), ("--config.data.max_device_bytes=1", "--config.data.workers=0")


@pytest.mark.parametrize("place", [RESIDENT, STREAMED], ids=["resident", "streamed"])
def test_a_longer_run_compiles_nothing_more(run, tmp_path, place):
    def compiled(epochs):
        folder, names = tmp_path / f"{epochs}-epochs", tmp_path / f"{epochs}-names"
        # Chunks of streamed data that end in the middle of an epoch.
        hooks = [["note_compilations", str(names)], ["assign", "training.streamed:CHUNK_STEPS", 5]]
        done = run(*FLAGS, *place, f"--config.train.epochs={epochs}", f"--workdir={folder}", hooks=hooks)
        assert done.code == 0, done.err
        assert len(steps(folder)) >= 2 * epochs
        assert sum(row["split"] == "valid" for row in rows(folder)) == 2 * epochs
        return collections.Counter(names.read_text().split())

    short, long = compiled(1), compiled(2)
    assert short == long
    assert sum(count for name, count in long.items() if "run_steps" in name) == 1
    assert sum(count for name, count in long.items() if "evaluate" in name) == 3, long  # one for each split
