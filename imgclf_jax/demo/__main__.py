"""Try a trained network in a browser: `python -m imgclf_jax.demo --workdir=DIR`.

It prints the address of a page that classifies photos: drop, paste or choose them, or use the camera. The page shows
the most probable classes of each photo and, for a network that allows it, what the network looked at. It needs no
network connection: only this computer can open the page, photos stay in memory, and nothing is written.

Ctrl-C ends the tool. Its exit status is then 130, as that of every tool.
"""

if __name__ == "__main__":  # Must come before the imports that swallow Ctrl-C.
    from imgclf_jax.terminal import interrupt

    interrupt.install()

import sys
import threading
import webbrowser
from pathlib import Path

from absl import flags

from imgclf_jax.errors import UserError
from imgclf_jax.terminal import cli

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this tool."""
    cli.define_run()
    flags.DEFINE_integer("port", 0, "Port of the page; 0: any free one.", lower_bound=0, upper_bound=65535)
    flags.DEFINE_bool("open", False, "Open the page in the browser.")


def main(argv: list[str]) -> int:
    """Parses the command line and serves the page until a signal ends it."""
    define_flags()
    cli.parse_flags(argv)
    if not FLAGS.workdir:
        raise UserError("--workdir is missing; give the folder that training printed")
    from imgclf_jax.demo import server

    with server.bind(FLAGS.port) as web:  # before the slow imports: a busy port is reported at once
        from imgclf_jax.devices import xla
        from imgclf_jax.training import trained

        xla.configure_xla()
        cli.begin_work(needs_stdout=False)
        from imgclf_jax.demo.answers import Answers
        from imgclf_jax.predict.network import Network

        web.answers = Answers(Network(trained.load(Path(FLAGS.workdir), FLAGS.checkpoint)), FLAGS.workdir)
        print(f"page {web.url}  (Ctrl-C ends it)", flush=True)
        if FLAGS.open:
            threading.Thread(target=_open, args=(web.url,), daemon=True).start()
        try:
            web.serve_forever()
        finally:
            web.answers.close()
    return 0


def _open(url):
    if not webbrowser.open(url):
        print(f"warning: no browser was found for --open; open {url} yourself", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(cli.run_tool(main, takes_config=False))
