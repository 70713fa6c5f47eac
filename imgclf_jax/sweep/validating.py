"""Validates the configs of a sweep, by default in another process.

Validation counts the devices, so JAX opens them. On an accelerator it would keep most of its memory, or all of the
device, until the process ends: the runs of the sweep, which are other processes, would find it taken.
"""

import json
import re
import subprocess
import sys

from ml_collections import ConfigDict

from imgclf_jax import components
from imgclf_jax import config as configs
from imgclf_jax.errors import UserError


def in_this_process(named: dict[str, ConfigDict]) -> list[str]:
    """Validates configs as training does. Imports JAX.

    Args:
        named: name of the variant -> its config.

    Returns:
        One text for each problem, which begins with the names of the variants that have it.
    """
    from imgclf_jax.training.validate import validate

    found: dict[str, list[str]] = {}  # problem -> names
    for name, config in named.items():
        try:
            validate(config)
        except UserError as error:
            for problem in re.split(r"\n(?! )", str(error)):  # Indented lines continue the one before.
                found.setdefault(problem, []).append(name)
    return [
        f"all {len(names)} variants: {problem}" if len(names) == len(named) > 1 else f"{', '.join(names)}: {problem}"
        for problem, names in found.items()
    ]


def in_another_process(named: dict[str, ConfigDict]) -> list[str]:
    """Does the same in a process that has ended when this function returns.

    Raises:
        UserError: the process failed.
    """
    if wrong := [f"{name}: {line}" for name, config in named.items() for line in configs.problems(config)]:
        return wrong  # These configs do not survive JSON.
    values = {name: configs.to_json(config) for name, config in named.items()}
    done = subprocess.run(
        [sys.executable, "-m", "imgclf_jax.sweep.validating"],
        input=json.dumps({"configs": values, "parts": components.folders()}),
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    try:
        return list(json.loads(done.stdout.splitlines()[-1])["problems"])
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"validating the configs ended with status {done.returncode} and no result") from error


def main() -> None:
    """Reads {"configs": {name: config}, "parts": folders} as JSON, and writes {"problems": lines}, also as JSON."""
    from imgclf_jax.devices import xla

    given = json.loads(sys.stdin.buffer.read().decode("utf-8"))
    values = given["configs"]
    components.look_in(given["parts"])
    xla.configure_xla()
    problems = in_this_process({name: configs.from_json(config) for name, config in values.items()})
    print(f"\n{json.dumps({'problems': problems})}")


if __name__ == "__main__":
    main()
