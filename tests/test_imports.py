"""What is imported when: nothing heavy by the package itself, TensorFlow never."""

import json
import subprocess
import sys

from runs import ROOT, environment

pytest_plugins = ["run_fixtures"]

HEAVY = {"tensorflow", "tensorflow_datasets", "orbax", "matplotlib", "jax", "flax", "rich", "PIL"}


def modules_after(code: str) -> set[str]:
    """The top-level packages in memory after `code`."""
    code += "\nimport json, sys; print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_package_and_configs_import_nothing_heavy():
    files = [str(path) for path in sorted((ROOT / "configs").rglob("*.py"))]
    assert files
    code = (
        f"import imgclf_jax, runpy\nfor path in {files}:\n"
        "    names = runpy.run_path(path)\n    names['get_sweep' if 'get_sweep' in names else 'get_config']()"
    )
    assert not modules_after(code) & (HEAVY | {"scipy"})


def test_a_mistake_on_the_command_line_is_reported_before_jax_is_imported():
    code = (
        "import sys; from imgclf_jax import main; from imgclf_jax.terminal import cli\n"
        "sys.argv = ['main', '--config=configs/cnn.py', '--config.train.epoch=3']\n"
        "assert cli.run_tool(main.main) == 2"
    )
    assert not modules_after(code) & HEAVY


def test_a_whole_run_never_imports_tensorflow(finished):
    assert finished.imports["tensorflow"] == []
    assert {"jax", "orbax.checkpoint"} <= set(finished.imports["modules"])


def test_a_whole_run_imports_no_plotting(finished):
    assert "matplotlib" not in finished.imports["modules"]
