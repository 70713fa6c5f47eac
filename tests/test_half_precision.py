"""devices/half_precision.py: what is said about bfloat16 on this processor."""

import jax
import pytest

from imgclf_jax.devices import half_precision


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about processors")
@pytest.mark.parametrize(
    ("flags", "version", "expected"),
    [
        ("flags\t\t: fpu sse avx2", (0, 12, 0), "processor"),
        ("flags\t\t: fpu avx512_bf16 amx_bf16", (0, 12, 0), None),
        ("Features\t: fp asimd bf16", (0, 12, 0), None),
        ("flags\t\t: fpu avx512_bf16", (0, 10, 1), "JAX"),
        ("flags\t\t: fpu", (0, 10, 1), "processor"),
        ("model name\t: unknown", (0, 12, 0), None),
    ],
)
def test_the_reason_follows_from_the_processor_and_the_version(tmp_path, monkeypatch, flags, version, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{flags}\nbugs\t\t: none\n")
    monkeypatch.setattr(half_precision.clib, "dtypes", frozenset)
    monkeypatch.setattr(half_precision, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(jax.version, "__version_info__", version)
    reason = half_precision.emulated()
    assert reason is None if expected is None else expected in reason


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about processors")
def test_nothing_is_said_if_the_library_multiplies_it(monkeypatch):
    monkeypatch.setattr(half_precision.clib, "dtypes", lambda: frozenset({"float32", "bfloat16"}))
    monkeypatch.setattr(jax.version, "__version_info__", (0, 10, 1))
    assert half_precision.emulated() is None
