"""What cannot be read is set aside, never deleted: the bytes, and beside them a file that says why.

    quarantine/3f2a…-00000042-1024.frame
    quarantine/3f2a…-00000042-1024.frame.reason.json

The reason names place and cause, never content.
"""

from __future__ import annotations

import json
from pathlib import Path

from otel_lightning.store.fs import Disk
from otel_lightning.store.lake import Lake


def set_aside(disk: Disk, lake: Lake, name: str, data: bytes | bytearray | memoryview, why: str) -> None:
    """Keep `data` under `name` with the reason beside it; the same again changes nothing.

    The reason goes last: where it is, the pair is complete.
    """
    disk.make_folder(lake.quarantine)
    _put(disk, lake, name, data)
    _put_reason(disk, lake, name, {"bytes": len(data)}, why)


def set_aside_file(disk: Disk, lake: Lake, path: Path, name: str, why: str) -> None:
    """Move a file that cannot be read under `name`, with the reason beside it."""
    disk.make_folder(lake.quarantine)
    disk.rename(path, lake.quarantine / name)
    disk.sync_folder(path.parent)
    _put_reason(disk, lake, name, {}, why)


def _put_reason(disk: Disk, lake: Lake, name: str, more: dict[str, int], why: str) -> None:
    reason = {"file": name, **more, "reason": why}
    _put(disk, lake, f"{name}.reason.json", (json.dumps(reason, indent=2) + "\n").encode())
    disk.sync_folder(lake.quarantine)


def _put(disk: Disk, lake: Lake, name: str, content: bytes | bytearray | memoryview) -> None:
    temporary = lake.quarantine / f".{name}.tmp"
    disk.unlink(temporary)
    disk.append(temporary, content)
    disk.sync(temporary)
    disk.rename(temporary, lake.quarantine / name)
