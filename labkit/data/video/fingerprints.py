"""Fingerprints of videos: a hash of size and content, independent of name and folder, as the key of caches.

Neither name nor time enters, so that a data folder that was moved or copied finds its frames again. The price is that the content
must be read: a file of up to 1 MiB whole, of a larger one 17 blocks. A change to a larger file that keeps its size and falls between
two blocks is not seen; encoders, cuts and downloads that broke off move far more than that.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from labkit.errors import LabError

_WHOLE = 1 << 20
_BLOCK = 32 << 10
# An odd number: one block lies in the very middle.
_BLOCKS = 17
# A file that changed this recently may change again within one tick of the file system's clock.
_MIN_FILE_AGE = 2.0
_known: dict[tuple[int, int, int, int, int], str] = {}


def fingerprint(path: str | Path) -> str:
    """32 hex digits from a video's size and content; see the module for what is read of it.

    Within one process a file is read again only when its size or one of its times changed.

    Raises LabError when the file is missing or empty.
    """
    size = require(path)
    with open(path, "rb") as file:
        stat = os.fstat(file.fileno())
        # Whoever sets back a file's time of modification moves its time of change.
        key = (stat.st_dev, stat.st_ino, size, stat.st_mtime_ns, stat.st_ctime_ns)
        if found := _known.get(key):
            return found
        digest = hashlib.blake2b(f"{size} ".encode(), digest_size=16)
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for block in range(_BLOCKS):
                file.seek((size - _BLOCK) * block // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK))
    if time.time() - max(stat.st_mtime, stat.st_ctime) > _MIN_FILE_AGE:
        _known[key] = digest.hexdigest()
    return digest.hexdigest()


def require(path: str | Path) -> int:
    """Size in bytes of a file that is there, can be read and holds something; LabError says which of these fails."""
    step = "put the file there or correct 'video' in the moments file"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise LabError(f"video {path} is not there; {step}") from None
    except OSError as error:
        raise LabError(f"video {path} cannot be read ({error.strerror}); {step}") from None
    if size == 0:
        raise LabError(f"video {path} is empty (0 bytes); copy or download it again")
    return size
