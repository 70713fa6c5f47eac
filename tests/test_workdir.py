"""The folder of a run: its lock, its config, its record."""

import errno
import re

import pytest

from imgclf_jax.config import default
from imgclf_jax.errors import UserError
from imgclf_jax.storage import files as storage
from imgclf_jax.workdir import saved_config
from imgclf_jax.workdir.claim import check_usable, claim, default_path
from imgclf_jax.workdir.record import RunRecord


def test_default_path_is_named_after_the_config_file():
    path = default_path("some/where/cnn.py")
    assert path.parent.as_posix() == "runs/cnn"
    assert re.fullmatch(r"\d{8}-\d{6}", path.name)


def test_folder_is_made_with_its_parents_and_locked(tmp_path):
    folder = tmp_path / "a" / "b"
    with claim(folder):
        assert folder.is_dir()
        with pytest.raises(UserError, match="another process is using"):
            claim(folder)
    claim(folder).close()


def test_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to workdir"):
        claim(tmp_path / "file" / "run")


def test_check_usable_refuses_what_claim_refuses(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    for name in ("file", "file/run", "locked", "x" * 300):
        with pytest.raises(UserError, match="cannot write to workdir"):
            claim(tmp_path / name)
        with pytest.raises(UserError, match="cannot write to workdir"):
            check_usable(tmp_path / name)


def test_config_comes_back_as_it_was_saved(tmp_path):
    config = default()
    config.model.widths = (1, 2)
    config.train.epochs = 3.0
    saved_config.save_config(tmp_path, config)
    assert saved_config.load_config(tmp_path).to_dict() == config.to_dict()


def test_folder_without_a_config_holds_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        saved_config.load_config(tmp_path)
    with pytest.raises(UserError, match="holds no run"):
        saved_config.load_config(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"model": 3}', '{"seed": "zero"}', "\x00"])
def test_damaged_config_is_reported(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json|config field"):
        saved_config.load_config(tmp_path)


def test_new_folder_accepts_any_config(tmp_path):
    assert saved_config.check_config(tmp_path, default(), allow_change=False) == []


def test_a_config_with_fields_that_do_not_exist_is_not_another_config(tmp_path):
    (tmp_path / "config.json").write_text('{"step": "three"}')
    with pytest.raises(UserError, match=r"config\.json: unknown config field step") as caught:
        saved_config.check_config(tmp_path, default(), allow_change=True)
    assert len(str(caught.value).splitlines()) == 1


def test_changed_config_is_refused_unless_allowed(tmp_path):
    saved_config.save_config(tmp_path, default())
    assert saved_config.check_config(tmp_path, default(), allow_change=False) == []
    changed = default()
    changed.optim.learning_rate = 0.7
    changed.log.every_steps = 1
    with pytest.raises(UserError) as caught:
        saved_config.check_config(tmp_path, changed, allow_change=False)
    assert "optim.learning_rate: 0.1 -> 0.7" in str(caught.value)
    assert "log." not in str(caught.value)
    assert saved_config.check_config(tmp_path, changed, allow_change=True) == ["optim.learning_rate: 0.1 -> 0.7"]


def record(folder):
    return storage.read_json(folder / "run.json")


def test_record_is_on_disk_from_the_beginning_of_a_session(tmp_path):
    started = RunRecord(tmp_path)
    assert not (tmp_path / "run.json").exists()
    started.begin(seed=3)
    assert record(tmp_path)["status"] == "running"
    assert record(tmp_path)["seed"] == 3


def test_record_adds_up_the_sessions_of_a_run(tmp_path):
    first = RunRecord(tmp_path)
    first.begin()
    first.update(status="interrupted", step=5)
    content = record(tmp_path) | {"wall_time_seconds": 100.0}
    second = RunRecord(tmp_path, content)
    assert second.content["status"] == "interrupted"
    second.begin()
    second.update(status="complete")
    assert record(tmp_path)["sessions"] == 2
    assert record(tmp_path)["started"] == content["started"]
    assert record(tmp_path)["wall_time_seconds"] >= 100
    assert second.wall_time >= 100
    # What the first session said about its end is not true of the second.
    assert "step" not in record(tmp_path)


# What is left of a claim


def test_a_claim_that_is_not_kept_leaves_nothing(tmp_path):
    with claim(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert list(tmp_path.iterdir()) == []
    with claim(tmp_path / "a" / "b") as kept:
        kept.keep()
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "a" / "b" / ".lock").unlink()
    with claim(tmp_path / "a" / "b"):
        pass
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_claim_that_was_refused_leaves_the_owner_alone(tmp_path):
    folder = tmp_path / "run"
    with claim(folder):
        with pytest.raises(UserError, match="another process is using"):
            claim(folder)
        assert (folder / ".lock").exists()
        with pytest.raises(UserError, match="another process is using"):
            claim(folder)


def test_names_that_are_taken_get_a_number(tmp_path):
    folder = tmp_path / "runs" / "cnn" / "20260101-120000"
    with claim(folder, new=True) as first, claim(folder, new=True) as second:
        third = claim(folder, new=True)
        assert [each.folder.name for each in (first, second, third)] == [
            "20260101-120000",
            "20260101-120000-2",
            "20260101-120000-3",
        ]
        third.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match=r"cannot lock workdir .* \(No locks available\)"):
        claim(tmp_path / "run").close()
