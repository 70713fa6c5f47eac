"""The server of the page: for this computer alone, and for no other web page that its browser shows.

A page elsewhere can make a browser send requests to 127.0.0.1, and a name elsewhere can resolve to it (DNS rebinding).
Requests whose `Host` is not this computer, or whose `Origin` is another page, are refused.
"""

import contextlib
import errno
import http.server
import json
import os
import socketserver
import sys
import traceback
import urllib.parse
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgclf_jax.errors import UserError

if TYPE_CHECKING:  # It imports JAX.
    from imgclf_jax.demo.answers import Answers

ADDRESS = "127.0.0.1"
MOST_BYTES = 32 * 2**20  # of an image file
SECONDS = 30  # that a connection may be silent
LINGER = 1  # the same, in seconds, for what is sent after a request was refused
_HOSTS = (ADDRESS, "localhost")
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/camera.js": ("camera.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """The server; see `bind`.

    Attributes:
        answers: what answers about images; to be set before it serves.
    """

    answers: "Answers"
    daemon_threads = True  # An idle connection must not delay the end.
    allow_reuse_address = os.name == "posix"  # Elsewhere it would let two servers share a port.
    request_queue_size = 64

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores that a browser closed a connection. Anything else is a bug and gets a traceback."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


def bind(port: int) -> Server:
    """Returns a server that is bound to a port of this computer; 0 chooses a free one.

    Raises:
        UserError: the port cannot be used.
    """
    try:
        return Server((ADDRESS, port), _Handler)
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror or error})"
        raise UserError(f"port {port} {reason}; choose another --port, or leave it out for a free one") from error


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers the requests of a connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = SECONDS
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """The page and its files, and what it says of the network."""
        if not self._is_allowed():
            return
        path = urllib.parse.urlsplit(self.path).path
        if path == "/about":
            self._json(HTTPStatus.OK, {**self.server.answers.about(), "bytes": MOST_BYTES})
        elif path in _FILES:
            name, kind = _FILES[path]
            self._send(HTTPStatus.OK, Path(__file__).with_name(name).read_bytes(), kind)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """The answer about the image that is the body of the request."""
        if not self._is_allowed():
            return
        if self.path != "/classify":
            return self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        if (length := self._length()) is None:
            return self._refuse(HTTPStatus.LENGTH_REQUIRED, "the request does not give the length of the file")
        if length > MOST_BYTES:
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large())
        encoded = self.rfile.read(length)
        if len(encoded) < length:
            self.close_connection = True
            return None
        from imgclf_jax.data.decode import BadPhoto

        try:
            return self._json(HTTPStatus.OK, self.server.answers.answer(encoded))
        except BadPhoto as error:
            return self._json(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)})
        except MemoryError:
            return self._json(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": "too large for the memory of this computer"})
        except Exception:
            traceback.print_exc()
            return self._refuse(
                HTTPStatus.INTERNAL_SERVER_ERROR, "the program failed; the terminal in which it runs says why"
            )

    def handle_expect_100(self) -> bool:
        """Refuses before the body is sent, where the client waits for that."""
        if (self._length() or 0) > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large())
            return False
        return super().handle_expect_100()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Reports a request that the base class refuses, like any other."""
        self._refuse(HTTPStatus(code), message or HTTPStatus(code).phrase)

    def version_string(self) -> str:
        """The header `Server`."""
        return "imgclf_jax"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Prints nothing."""

    def _is_allowed(self) -> bool:
        host, origin = self.headers.get_all("Host") or [""], self.headers.get("Origin")
        name = (host[0].rpartition(":")[0] or host[0]).lower()
        if len(host) > 1 or name not in _HOSTS:
            self._refuse(HTTPStatus.FORBIDDEN, f"open the page as {self.server.url}")
        elif origin is not None and origin != f"http://{host[0]}":
            self._refuse(HTTPStatus.FORBIDDEN, "requests from other pages are refused")
        else:
            return True
        return False

    def _refuse(self, status, reason):
        """Sends an error and closes the connection, because the body of the request has not been read."""
        self.close_connection = True
        self._json(status, {"error": reason})
        if self._length() is None and "Transfer-Encoding" not in getattr(self, "headers", ()):
            return
        self.connection.settimeout(LINGER)  # Many clients read the answer only when they have sent everything.
        left = min(self._length() or 8 * MOST_BYTES, 8 * MOST_BYTES)
        with contextlib.suppress(OSError):
            while left > 0 and (part := self.rfile.read1(min(left, 2**16))):
                left -= len(part)

    def _length(self):
        """The length of the body, or None if the request does not give it."""
        given = (getattr(self, "headers", None) or {}).get("Content-Length", "")
        return int(given) if given.isascii() and given.isdecimal() and len(given) < 20 else None

    def _json(self, status, content):
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status, body, kind):
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if getattr(self, "command", None) != "HEAD":
            self.wfile.write(body)


def too_large() -> str:
    """What the page says of a file that is larger than `MOST_BYTES`."""
    return f"larger than {MOST_BYTES // 2**20} MB; save it smaller"
