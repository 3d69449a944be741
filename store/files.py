"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder.

The real disk only. What must survive simulated power loss (the write-ahead log, segments, manifest)
goes through the seam in `fs.py`.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from pathlib import Path
from typing import Any

from otel_lightning.app.errors import StorageError


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` so that a reader, or a crash, sees the old file or the new one, never a part.

    StorageError in one line when the disk is full or refuses.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise disk_problem(path, error) from None


def write_json(path: Path, value: Any) -> None:
    """`write_whole` of `value` as indented JSON with sorted keys, so that equal values are equal bytes."""
    write_whole(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def append_line(path: Path, line: str) -> None:
    """Add one line to a log-like file and fsync it; a torn last line is the reader's to skip."""
    try:
        created = not path.exists()
        with open(path, "a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = "\n" + line  # a crash tore the last line: do not let it swallow this one
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if created:
            sync_folder(path.parent)
    except OSError as error:
        raise disk_problem(path, error) from None


def sync_folder(folder: Path) -> None:
    """Make renames and creations inside `folder` survive power loss."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_problem(path: Path, error: OSError) -> StorageError:
    """The one-line error for a failed write at `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{path}: the disk is full; free space and try again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"{path}: may not be written ({error.strerror}); check the folder's owner and mount")
    return StorageError(f"{path}: cannot be written ({error.strerror or error})")
