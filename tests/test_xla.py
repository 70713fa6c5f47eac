"""xla.py: the settings that a user has made are kept, and nothing but the false alarm is hidden."""

import os
import signal
import subprocess
import sys
import warnings

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from runs import ROOT, SOFTMAX, environment

from imgclf_jax.devices import native_errors, xla
from imgclf_jax.terminal import cli

pytest_plugins = ["run_fixtures"]

CACHE = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def test_a_compilation_cache_that_is_set_is_kept(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    flags = os.environ["XLA_FLAGS"]
    monkeypatch.setenv("XLA_FLAGS", flags)
    try:
        jax.config.update("jax_compilation_cache_dir", "/chosen")
        xla.configure_xla()
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
        xla.configure_xla()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "imgclf_jax" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def test_quiet_lets_everything_through_but_the_false_alarm(capfd):
    with xla.quiet():
        os.write(2, b"E0000 cpu_aot_loader.cc:210] Loading XLA:CPU AOT result\nE0000 a real error\n")
        print("a warning", file=sys.stderr)
    written = capfd.readouterr().err
    assert "a real error" in written
    assert "a warning" in written
    if jax.version.__version_info__ < (0, 11) and jax.default_backend() == "cpu":
        assert "cpu_aot_loader" not in written


def test_text_is_there_when_its_block_has_ended(capfd):
    for number in range(3):
        with native_errors.without("noise"):
            os.write(2, b"a noise\nline %d\nand a half" % number)
        os.write(2, b"|\n")
    expected = "".join(f"line {number}\nand a half|\n" for number in range(3))
    assert capfd.readouterr().err == expected
    with pytest.raises(ZeroDivisionError), native_errors.without("noise"):
        os.write(2, b"the cause\n")
        1 // 0  # noqa: B018
    with native_errors.without("noise"):
        with native_errors.without("noise"):
            os.write(2, b"inner\n")
        os.write(2, b"outer\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "the cause\ninner\nouter\nafterwards\n"


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_the_last_words_of_native_code_are_not_lost(number):
    code = (
        "import os\nfrom imgclf_jax.devices import native_errors\nwith native_errors.without('noise'):\n"
        f"  os.write(2, b'a noise\\nlast words\\nand a half'); os.kill(os.getpid(), {number})"
    )
    # The output ends when nobody holds it any more: the filter has ended as well.
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-number, "last words\nand a half")


def test_a_filter_that_was_killed_is_started_again(capfd):
    with native_errors.without("noise"):
        pass
    (running,) = native_errors.filters.values()
    running.kill()
    running.wait()
    with native_errors.without("noise"):
        os.write(2, b"a noise\nheard\n")
    assert capfd.readouterr().err == "heard\n"


def test_a_compilation_cache_that_fails_is_one_line(run, tmp_path):
    nowhere = tmp_path / "file" / "xla"
    nowhere.parent.write_text("")
    values = {"compilation_cache_dir": str(nowhere), "persistent_cache_min_compile_time_secs": "0"}
    hooks = [["set_config", f"jax_{name}", value] for name, value in values.items()]
    done = run(*SOFTMAX, f"--workdir={tmp_path / 'run'}", hooks=hooks)  # It compiles several programs.
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith(f"warning: the compilation cache {nowhere} cannot be used (NotADirectoryError: ")
    assert "JAX_COMPILATION_CACHE_DIR" in line


def test_damaged_entries_of_the_compilation_cache_are_one_line(monkeypatch, capsys, tmp_path):
    before = {name: jax.config.values[name] for name in CACHE}
    monkeypatch.setattr(warnings, "showwarning", cli.show_warning)
    monkeypatch.setattr(cli, "cache_warned", False)
    try:
        for name, value in zip(CACHE, (str(tmp_path), 0.0), strict=True):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                for factor in (3, 4):
                    assert jax.jit(lambda x, factor=factor: x * factor)(2) == 2 * factor
            entries = list(tmp_path.glob("*-cache"))
            assert len(entries) >= 2
            for entry in entries:
                entry.write_bytes(b"damaged")
            jax.clear_caches()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line and "decompressing" in line and "delete it" in line
