"""A process that has imported everything and forks a child for every run: a start costs milliseconds, not seconds.

Requests and answers are JSON lines: the arguments of `run` are answered with {"pid"}, {"wait": pid} with {"code"}.
JAX is imported but not initialised, so that there are no threads of its own that a fork would lose.
"""

import faulthandler
import gc
import json
import os
import runpy
import sys
import warnings
from pathlib import Path

import hooks as available_hooks
import tensorboardX  # noqa: F401  (imported for the children, like the next ones)

import imgclf_jax.check
import imgclf_jax.evaluate
import imgclf_jax.train

WATCHDOG_SECONDS = 150


def main() -> None:
    """Serves until standard input ends. In a child it returns after the run, as a process of its own would."""
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    gc.freeze()  # Children need not go through all of this memory when they collect garbage.
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if not pid:
                run(**request)
                return
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


def run(
    argv: list[str], cwd: str, env: dict[str, str], out: str, err: str, stuck: str, hooks: list[list], module: str
) -> None:
    """`python -m MODULE ARGV` with its output in files, after calling functions of `hooks`."""
    new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for descriptor, path, mode in ((0, os.devnull, os.O_RDONLY), (1, out, new), (2, err, new)):
        os.dup2(os.open(path, mode), descriptor)
    # To a file of its own: the run redirects its standard error now and then.
    faulthandler.dump_traceback_later(WATCHDOG_SECONDS, exit=True, file=os.open(stuck, new))
    os.chdir(cwd)
    os.environ.update(env)
    sys.argv = [str(Path(imgclf_jax.__file__).with_name(f"{module.rpartition('.')[2]}.py")), *argv]
    for name, *arguments in hooks:
        getattr(available_hooks, name)(*arguments)
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
