"""Names of files and folders: those that stand for classes, and those that systems and programs leave anywhere."""

import collections
import unicodedata
from collections.abc import Iterable

HIDDEN = "hidden"  # what `clutter` calls hidden entries that it does not know
_CLUTTER = {
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


def class_name(text: str) -> str:
    """Returns the name of the class that a folder or a label stands for: in Unicode normal form C.

    The same name may be written with composed or with separate accents (NFD), as macOS does.
    """
    return unicodedata.normalize("NFC", text)


def clutter(name: str) -> str:
    """Returns what an entry of a folder is called in messages if it is no photo and no class; "" if it may be one.

    All hidden entries are clutter.
    """
    if name.startswith("."):
        return "._*" if name.startswith("._") else name if name == ".ipynb_checkpoints" else HIDDEN
    return _CLUTTER.get(name.lower(), "")


def summary(kinds: Iterable[str]) -> str:
    """Returns the results of `clutter` with how often each one occurs, such as "@eaDir (2), Thumbs.db (1)"."""
    return ", ".join(f"{name} ({count})" for name, count in sorted(collections.Counter(kinds).items()))
