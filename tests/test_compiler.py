"""compiler.py: the settings that a user has made are kept, and nothing but the false alarm is hidden."""

import os
import sys

import jax
import pytest

from imgclf_jax import compiler


def test_a_compilation_cache_that_is_set_is_kept(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    flags = os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", flags)
    try:
        jax.config.update("jax_compilation_cache_dir", "/chosen")
        compiler.configure_xla()
        assert jax.config.jax_compilation_cache_dir == "/chosen"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    # The tests' own set-up has called it already: flags are not repeated.
    assert os.environ["XLA_FLAGS"] == flags


def test_the_compilation_cache_honours_xdg_cache_home(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        compiler.configure_xla()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "imgclf_jax" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_quiet_lets_everything_through_but_the_false_alarm(capfd):
    with compiler.quiet():
        os.write(2, b"E0000 cpu_aot_loader.cc:210] Loading XLA:CPU AOT result\nE0000 a real error\n")
        print("a warning", file=sys.stderr)
    written = capfd.readouterr().err
    assert "a real error" in written
    assert "a warning" in written
    if jax.version.__version_info__ < (0, 11) and jax.default_backend() == "cpu":
        assert "cpu_aot_loader" not in written


def test_quiet_shows_what_was_written_before_an_error(capfd):
    with pytest.raises(ZeroDivisionError), compiler.quiet():
        os.write(2, b"the cause\n")
        1 // 0  # noqa: B018
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "the cause\nafterwards\n"
