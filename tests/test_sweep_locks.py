"""locks.py: a run has one holder, and only a dead holder is replaced."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from imgclf_jax.sweep import locks
from imgclf_jax.sweep.locks import hold, is_held, myself


@pytest.fixture
def path(tmp_path):
    return tmp_path / "locks" / "run.lock"


def write(path, age=0.0, **changes):
    """A lock of another process."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(myself()._asdict() | changes))
    os.utime(path, (time.time() - age,) * 2)


def test_a_lock_is_held_within_its_block_by_one_holder(path):
    with hold(path) as mine:
        assert mine and is_held(path) and locks.read(path) == myself()
        with hold(path) as again:
            assert not again
        assert is_held(path)
    assert not path.exists() and not is_held(path)


def test_only_one_of_many_threads_gets_a_dead_lock(path):
    for _ in range(5):
        write(path, pid=2**22 + 1, born="1")
        taken, start, end = [], threading.Barrier(8), threading.Barrier(8)

        def compete(taken=taken, start=start, end=end):
            start.wait()
            with hold(path) as mine:
                taken.append(mine)
                end.wait()

        threads = [threading.Thread(target=compete) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(taken) <= 1
        path.unlink(missing_ok=True)


def test_a_process_of_this_machine_is_dead_when_it_is_gone(path):
    code = (
        "import os, pathlib; from imgclf_jax.sweep.locks import hold\n"
        f"with hold(pathlib.Path({str(path)!r})): os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert path.exists()
    assert not is_held(path)
    with hold(path) as mine:
        assert mine


@pytest.mark.skipif(locks.myself().machine == "", reason="needs /proc")
def test_a_process_id_that_was_given_again_is_another_process(path):
    write(path, born="1")
    assert not is_held(path)


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"machine": "another boot"}])
def test_a_process_of_another_machine_lives_until_its_heartbeat_is_old(path, elsewhere):
    write(path, age=locks.DEAD_SECONDS - 30, pid=1, **elsewhere)
    with hold(path) as mine:
        assert not mine
    write(path, age=locks.DEAD_SECONDS + 30, pid=1, **elsewhere)
    assert not is_held(path)
    with hold(path) as mine:
        assert mine and locks.read(path) == myself()


def test_a_lock_that_is_being_written_is_held(path):
    path.parent.mkdir()
    path.touch()
    assert is_held(path)


def test_the_heartbeat_changes_the_time_and_notices_a_thief(path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    lost = threading.Event()
    with hold(path, lost.set) as mine:
        assert mine
        os.utime(path, (0, 0))
        until = time.monotonic() + 20
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0 and not lost.is_set()
        write(path, host="other")
        assert lost.wait(20)
    assert locks.read(path).host == "other"  # It is not ours to remove.
