"""Files and folders that systems and programs leave among a person's own: no photos, and no classes."""

import collections
from collections.abc import Iterable

_NAMES = {
    "thumbs.db": "Thumbs.db",  # Windows
    "desktop.ini": "desktop.ini",
    "$recycle.bin": "$RECYCLE.BIN",
    "system volume information": "System Volume Information",
    "__macosx": "__MACOSX",  # ZIP archives that macOS makes
    "icon\r": "Icon",
    "@eadir": "@eaDir",  # thumbnails of Synology's servers
    "#recycle": "#recycle",
    "lost+found": "lost+found",  # Linux
}


def kind(name: str) -> str:
    """Returns what an entry of a folder is called in messages if it is clutter, as all hidden entries are; else ""."""
    if name.startswith("."):
        return "._*" if name.startswith("._") else name if name == ".ipynb_checkpoints" else "hidden"
    return _NAMES.get(name.lower(), "")


def summary(kinds: Iterable[str]) -> str:
    """Returns the kinds with how often each one occurs, such as "@eaDir (2), hidden (1)"."""
    return ", ".join(f"{name} ({count})" for name, count in sorted(collections.Counter(kinds).items()))
