"""Downloads files. Fails quickly, and checks the published SHA-256 before a file gets its name."""

import dataclasses
import hashlib
import http.client
import queue
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from imgclf_jax.data.types import Progress
from imgclf_jax.errors import UserError
from imgclf_jax.storage import atomic
from imgclf_jax.storage.files import reason_of

ANSWER_SECONDS = 5.0  # for looking up the host, connecting and getting an answer
_STALL_SECONDS = 20.0  # without receiving a byte
_CHUNK = 1 << 20


class Unavailable(UserError):
    """A set cannot be obtained now: offline, refused, truncated or altered. The sample may replace it."""


@dataclasses.dataclass(frozen=True)
class Published:
    """A published file with its size in bytes and its SHA-256 (hex), which are known in advance."""

    url: str
    filename: str
    size: int
    sha256: str


def fetch(published: Published, url: str, path: Path, progress: Progress) -> None:
    """Downloads `url` to `path`, which appears only if its size and SHA-256 are those of `published`.

    Raises:
        Unavailable: there is no connection within seconds, an HTTP error occurs, the download stalls, or the file is
            truncated or differs from the published one.
        OSError: `path` cannot be written.
    """
    response = _open(url)
    with response, atomic.temporary_folder(path.parent) as temporary:
        part = temporary / path.name
        digest, done = hashlib.sha256(), 0
        with part.open("wb") as f:
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except http.client.IncompleteRead as e:
                    chunk = e.partial
                except OSError as e:  # An error of the connection: this block writes nothing.
                    raise Unavailable(f"{url}: the connection broke after {done} bytes ({reason_of(e)})") from e
                if not chunk:
                    break
                f.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(f"downloading {published.filename}", done, published.size)
                if done > published.size:
                    break  # It is not the published file, however long it is.
        promised = int(response.headers.get("Content-Length") or published.size)
        if done < promised:
            raise Unavailable(f"{url}: truncated, got {done} of {promised} bytes; the partial file is removed")
        if (done, digest.hexdigest()) != (published.size, published.sha256):
            raise Unavailable(f"{url} {_difference(published, done, digest.hexdigest())}; the file is removed")
        atomic.sync(part)
        part.replace(path)
        atomic.sync_names(path.parent)


def check(published: Published, path: Path) -> str:
    """Returns '' if the file at `path` is the published one, else how it differs."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        if size == published.size:  # otherwise there is no need to read it
            with path.open("rb") as f:
                while chunk := f.read(_CHUNK):
                    digest.update(chunk)
    except OSError as e:
        return f"cannot be read ({reason_of(e)})"
    return "" if digest.hexdigest() == published.sha256 else _difference(published, size, digest.hexdigest())


def _difference(published: Published, size: int, sha256: str) -> str:
    if size != published.size:
        return f"is not the published {published.filename}: size {size}, expected {published.size} bytes"
    return f"is not the published {published.filename}: SHA-256 {sha256[:16]}…, expected {published.sha256[:16]}…"


def _open(url: str) -> Any:
    """Opens the address in a thread, because looking up a host has no time limit and can take minutes offline."""
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "imgclf_jax"})
            answers.put(urllib.request.urlopen(request, timeout=_STALL_SECONDS))
        except Exception as e:
            answers.put(e)

    threading.Thread(target=ask, daemon=True).start()
    host = urllib.parse.urlsplit(url).netloc
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise Unavailable(f"{url}: no answer from {host} within {ANSWER_SECONDS:.0f} s") from None
    if isinstance(answer, urllib.error.HTTPError):
        raise Unavailable(f"{url}: {host} answered {answer.code} {answer.reason}")
    if isinstance(answer, urllib.error.URLError):
        raise Unavailable(f"{url}: cannot reach {host} ({reason_of(answer.reason)})")
    if isinstance(answer, Exception):
        raise Unavailable(f"{url}: cannot be opened ({reason_of(answer)})")
    return answer
