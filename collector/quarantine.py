"""What cannot be read is set aside, never deleted: the bytes, and beside them a file that says why.

    quarantine/3f2a…-00000042-1024.frame
    quarantine/3f2a…-00000042-1024.frame.reason.json

The reason names place and cause, never content.
"""

from __future__ import annotations

import json

from otel_lightning.store.fs import Disk
from otel_lightning.store.lake import Lake


def set_aside(disk: Disk, lake: Lake, name: str, data: bytes | bytearray | memoryview, why: str) -> None:
    """Keep `data` under `name` with the reason beside it; the same again changes nothing.

    The reason goes last: where it is, the pair is complete.
    """
    disk.make_folder(lake.quarantine)
    reason = {"file": name, "bytes": len(data), "reason": why}
    for file, content in (
        (name, data),
        (f"{name}.reason.json", (json.dumps(reason, indent=2) + "\n").encode()),
    ):
        temporary = lake.quarantine / f".{file}.tmp"
        disk.unlink(temporary)
        disk.append(temporary, content)
        disk.sync(temporary)
        disk.rename(temporary, lake.quarantine / file)
    disk.sync_folder(lake.quarantine)
