"""Policy folders and the pointers that name them: what training publishes and serving reads.

    policies/v0007/          a plain Hugging Face folder, plus policy.json and, once decided, gate.json
    policies/current         one line, `v0007`: what production gets; moved by the gate or by hand
    policies/candidate       one line: what the training loop acts with
    policies/history.jsonl   when, pointer, from, to, who, why

A version is written under a temporary name, fsynced, renamed, and never changed afterwards. Pointers
are replaced by rename, so a poller sees the old name or the new one. No weights are opened here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_lightning.app.config import nearest
from otel_lightning.app.errors import LightningError
from otel_lightning.store.files import append_line, disk_problem, sync_folder, write_json, write_whole

POINTERS = ("current", "candidate")
VERSION = re.compile(r"v\d{4,}")
HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Policy:
    """One published version: its name (`v0007`), its folder and what policy.json says."""

    version: str
    folder: Path
    info: Mapping[str, Any]

    @property
    def gate(self) -> Mapping[str, Any] | None:
        """The gate's verdict, or None while none was written."""
        return _read_json(self.folder / "gate.json")


class Policies:
    """The `policies/` folder of a lake."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def versions(self) -> list[str]:
        """Published version names, oldest first; half-written ones are not listed."""
        if not self.folder.is_dir():
            return []
        names = [p.name for p in self.folder.iterdir() if VERSION.fullmatch(p.name) and (p / "policy.json").is_file()]
        return sorted(names, key=lambda name: int(name[1:]))

    def get(self, name: str) -> Policy:
        """The policy a version or pointer names; LightningError with the nearest right name otherwise."""
        version = self.pointer(name) if name in POINTERS else name
        if version is None:
            raise LightningError(f"{self.folder}/{name} names no policy yet; publish one by training, or promote one")
        known = self.versions()
        if version not in known:
            guess = nearest(version, known)
            hint = f"did you mean {guess}?" if guess else "no policy is published yet" if not known else "see the list"
            raise LightningError(f"there is no policy '{version}' in {self.folder}; {hint}")
        folder = self.folder / version
        info = _read_json(folder / "policy.json")
        if info is None:
            raise LightningError(f"{folder}/policy.json cannot be read; restore it or remove the folder")
        return Policy(version, folder, info)

    def pointer(self, name: str) -> str | None:
        """The version that pointer `name` holds, or None."""
        try:
            return (self.folder / name).read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def point(self, name: str, version: str, *, who: str, why: str) -> None:
        """Move a pointer to a published version and write the move into the history."""
        if name not in POINTERS:
            raise LightningError(f"there is no pointer '{name}'; pointers are {' and '.join(POINTERS)}")
        target = self.get(version).version
        before = self.pointer(name)
        # History first: a crash in between leaves a move that was announced and can be repeated,
        # never one that nobody can explain.
        record = {
            "unix_nano": time.time_ns(),
            "pointer": name,
            "from": before,
            "to": target,
            "who": who,
            "why": why,
        }
        append_line(self.folder / "history.jsonl", json.dumps(record, ensure_ascii=False))
        write_whole(self.folder / name, f"{target}\n".encode(), mode=0o644)

    def history(self) -> list[dict[str, Any]]:
        """Every recorded move, oldest first; a torn last line is skipped."""
        try:
            lines = (self.folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        moves = []
        for line in lines:
            try:
                moves.append(json.loads(line))
            except ValueError:
                continue
        return moves

    def publish(self, save: Callable[[Path], None], info: Mapping[str, Any]) -> Policy:
        """Publish the next version: `save(folder)` writes the Hugging Face files, `info` joins policy.json.

        policy.json gets `version`, `created_unix_nano` and `files` ({name: sha256}) beside `info`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        number = max((int(name[1:]) for name in self._taken()), default=0) + 1
        version = f"v{number:04d}"
        with _whole_folder(self.folder / version) as folder:
            save(folder)
            files = {p.relative_to(folder).as_posix(): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
            record = {**info, "version": version, "created_unix_nano": time.time_ns(), "files": files}
            write_json(folder / "policy.json", record)
        return Policy(version, self.folder / version, record)

    def write_gate(self, version: str, verdict: Mapping[str, Any]) -> None:
        """Put gate.json beside a policy; LightningError if there is one, since a verdict is written once."""
        path = self.get(version).folder / "gate.json"
        if path.exists():
            raise LightningError(f"{path} exists; a gate judges a version once: publish it anew to judge it again")
        write_json(path, dict(verdict))

    def remove(self, version: str) -> None:
        """Delete a version that no pointer names; LightningError when one does."""
        for pointer in POINTERS:
            if self.pointer(pointer) == version:
                raise LightningError(f"{version} is {pointer}; point {pointer} elsewhere before removing it")
        folder = self.get(version).folder
        gone = self.folder / f".{version}.{secrets.token_hex(4)}.tmp"
        os.replace(folder, gone)
        shutil.rmtree(gone)

    def _taken(self) -> list[str]:
        return [p.name for p in self.folder.iterdir() if VERSION.fullmatch(p.name)]


def tokenizer_sha256(folder: Path) -> str:
    """The identity of a tokenizer: sha256 of tokenizer.json and the chat template in `folder`.

    Two policies with the same value turn equal messages into equal ids. LightningError when the
    folder holds no tokenizer.json.
    """
    try:
        digest = hashlib.sha256((folder / "tokenizer.json").read_bytes())
    except OSError:
        raise LightningError(f"{folder} holds no tokenizer.json; give a complete Hugging Face model folder") from None
    template = folder / "chat_template.jinja"
    if template.is_file():
        digest.update(b"\0" + template.read_bytes())
    else:
        config = _read_json(folder / "tokenizer_config.json") or {}
        digest.update(b"\0" + str(config.get("chat_template") or "").encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(HASH_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path`, fsynced, when the block ends well, and nothing otherwise."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        for item in temporary.rglob("*"):
            if item.is_dir():
                sync_folder(item)
            else:
                with open(item, "rb") as file:
                    os.fsync(file.fileno())
        sync_folder(temporary)
        os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise disk_problem(path, error) from None
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
