"""List the tools and the configs, and copy files that come with the package: `python -m imgclf_jax [--copy=NAME]`.

python -m imgclf_jax --copy=slurm.sbatch      # a script for a SLURM cluster, to adapt
python -m imgclf_jax --copy=cnn               # the config of that name, as cnn.py, to start from
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import ast
import difflib
import sys
from pathlib import Path

from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.storage import atomic
from imgclf_jax.terminal import cli, named, tools

FLAGS = flags.FLAGS
LAUNCHER = Path(__file__).resolve().parent / "slurm.sbatch"


def define_flags() -> None:
    """Defines the flags of this tool."""
    flags.DEFINE_string("copy", None, f"Write {LAUNCHER.name} or a config, given by its name, to the current folder.")


def main(argv: list[str]) -> int:
    """Parses the command line and prints the overview, or copies a file. Returns the exit status."""
    define_flags()
    positional = cli.parse_flags(argv, positional=True)
    if positional:
        meant = f"; its command is {tools.command(positional[0])}" if positional[0] in tools.TOOLS else ""
        raise UserError(f"unexpected argument {positional[0]!r}{meant}")
    if FLAGS.copy is not None:
        return _copy(FLAGS.copy)
    print("Tools (--help explains the flags of each):\n")
    _table({tools.command(name): purpose for name, (_, purpose) in tools.TOOLS.items()})
    print("\nConfigs, by name (--config=NAME; --copy=NAME copies one):\n")
    _table({name: _summary(named.folder() / f"{name}.py") for name in named.names()})
    return 0


def _table(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"  {name:{width}}  {text}")


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_bytes())) or "").partition("\n")[0]


def _copy(name: str) -> int:
    sources = {LAUNCHER.name: LAUNCHER, **{each: named.folder() / f"{each}.py" for each in named.names()}}
    if name not in sources:
        close = difflib.get_close_matches(name, sources, 1)
        hint = f"did you mean {close[0]}? There are" if close else "there are"
        raise UserError(f"--copy={name} is unknown; {hint} {', '.join(sources)}")
    source = sources[name]
    target = Path(source.name)
    if target.exists():
        raise UserError(f"{target} exists; move it away, or copy in another folder")
    atomic.write_text(target, source.read_text(encoding="utf-8"))
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
