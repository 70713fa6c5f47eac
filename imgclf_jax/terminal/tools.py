"""The tools, how the console scripts start them, and how messages name them.

`imgclf-train` does what `python -m imgclf_jax.main` does, in the same way: signals are handled before anything slow is
imported, and processes that the tool spawns find its module again.
"""

import runpy
from functools import partial

from imgclf_jax.terminal import interrupt

# Name of the tool, whose console script is imgclf-NAME -> (its module in the package, what it does).
TOOLS = {
    "train": ("main", "train, resume, evaluate or check an experiment, or train a recorded run again"),
    "preview": ("preview", "draw images next to their augmented versions"),
    "report": ("report", "write a web page about runs"),
    "predict": ("predict", "classify photos with a trained network"),
    "demo": ("demo", "a page on this machine to try a trained network"),
    "export": ("export", "write a trained network as one file for other programs"),
    "sweep": ("sweep", "run many variants of an experiment with many seeds"),
    "compare": ("compare", "the table of the results of many runs"),
    "ensemble": ("ensemble", "evaluate the runs of a sweep together"),
    "cache": ("cache", "list or remove what was kept to start faster"),
}
_by_script = False


def command(name: str) -> str:
    """Returns what to type to start a tool, for messages: in the way in which this process was started."""
    return f"imgclf-{name}" if _by_script else f"python -m imgclf_jax.{TOOLS[name][0]}"


def start(name: str) -> None:
    """Runs a tool on the command line of this process, as `python -m` does. Ends by `SystemExit`."""
    global _by_script
    _by_script = True
    interrupt.install()  # Before the imports that swallow Ctrl-C.
    module = f"imgclf_jax.{TOOLS[name][0]}" if name else "imgclf_jax"
    runpy.run_module(module, run_name="__main__", alter_sys=True)


# The entry points of pyproject.toml.
train, preview, report, predict, demo, export, sweep, compare, ensemble, cache = (
    partial(start, name) for name in TOOLS
)
overview = partial(start, "")
