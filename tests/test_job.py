"""job.py: what is used of JAX's private parts exists and behaves as the package relies on."""

import json
import socket
import subprocess
import sys

from runs import ROOT, environment

CODE = """
import json, sys, time
import jax
from imgclf_jax.devices import job, processes

assert job.place().client is None
assert not jax.distributed.is_initialized() and not processes.several()
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 1, 0, cluster_detection_method="deactivate")
client, process, count = job.place()
assert jax.distributed.is_initialized()

client.key_value_set("a/0", "first")
client.key_value_set("b/0", "1", allow_overwrite=True)
client.key_value_set("b/0", "2", allow_overwrite=True)
client.key_value_set("b/1", "3", allow_overwrite=True)
start = time.monotonic()
try:
    client.blocking_key_value_get("nobody/wrote/this", 300)
    missing = "was there"
except jax.errors.JaxRuntimeError as error:
    missing = str(error)
print(json.dumps({
    "place": [process, count],
    "get": [client.blocking_key_value_get("a/0", 1000), client.key_value_try_get("b/0")],
    "folder": sorted(map(list, client.key_value_dir_get("b/"))),
    "missing": missing,
    "waited": time.monotonic() - start,
}))
jax.distributed.shutdown()
assert job.place().client is None and not jax.distributed.is_initialized()
"""


def test_the_store_of_the_coordinator_is_what_the_package_relies_on():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(port)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["place"] == [0, 1]
    assert answers["get"] == ["first", "2"]
    assert answers["folder"] == [["b/0", "2"], ["b/1", "3"]]
    assert "DEADLINE_EXCEEDED" in answers["missing"] and answers["waited"] > 0.2


def test_no_other_module_uses_private_parts_of_jax():
    files = [path for place in ("imgclf_jax", "scripts", "configs") for path in sorted((ROOT / place).rglob("*.py"))]
    users = [path.relative_to(ROOT).as_posix() for path in files if "jax._src" in path.read_text(encoding="utf-8")]
    assert users == ["imgclf_jax/devices/job.py"]
