"""sweep/: what --status shows, from run directories that were written by hand."""

import pytest
from fake_runs import write_run, write_sweep

from imgclf_jax.sweep import states, status
from imgclf_jax.terminal.console import Console
from imgclf_jax.workdir import failure

FLIP = {"augment.flip": True}


@pytest.fixture
def places(tmp_path):
    return write_sweep(tmp_path, {"plain": {}, "flip": FLIP}, [0, 1, 2, 3])


def lines(folder, capsys):
    status.show(folder, Console("lines"))
    return capsys.readouterr().out.splitlines()


def test_states_times_and_problems(places, tmp_path, capsys):
    for seed, seconds in enumerate((30.0, 60.0)):
        write_run(places["plain"] / f"seed{seed}", {}, seed, wall_time_seconds=seconds)
    write_run(places["plain"] / "seed2", {}, 2, status="diverged", wall_time_seconds=1000.0)
    write_run(places["plain"] / "seed3", {}, 3, status="pruned")
    write_run(places["flip"] / "seed0", FLIP, 0, wall_time_seconds=180.0, together=2)
    write_run(places["flip"] / "seed1", FLIP, 1, status="interrupted")
    failure.write(places["flip"] / "seed2", failure.Failure("a", "OSError: no room\nnext line"))
    shown = lines(tmp_path, capsys)
    assert [line.split() for line in shown[:4]] == [
        ["group", "waiting", "interrupted", "complete", "diverged", "failed", "pruned"],
        ["plain", "2", "1", "1"],
        ["flip", "1", "1", "1", "1"],
        ["all", "1", "1", "3", "1", "1", "1"],
    ]
    # 30, 60 and 180 / 2 seconds; one run waits and one was interrupted.
    assert shown[4] == (
        "a complete run took 1:00 min on average (30.0 s to 1:30 min); 2 left: about 2:00 min, if they run one after "
        "another"
    )
    log = states.log_path(places["flip"] / "seed2")
    assert f"failed: flip seed 2: OSError: no room  ({log})" in shown


def test_before_the_first_run_is_complete_and_after_the_last(places, tmp_path, capsys):
    assert len(lines(tmp_path, capsys)) == 4
    for name, changes in (("plain", {}), ("flip", FLIP)):
        for seed in range(4):
            write_run(places[name] / f"seed{seed}", changes, seed)
    assert lines(tmp_path, capsys)[4] == "a complete run took 1:00 min on average (1:00 min to 1:00 min)"
