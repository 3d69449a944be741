"""Where everything in a lake lies. Paths only: nothing is opened, and nothing a sender says becomes a path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from otel_lightning.app.errors import LightningError

SIGNALS = ("spans", "events", "metrics")


@dataclass(frozen=True)
class Lake:
    """The folder that holds spans, events and metrics, what is derived from them, and the policies."""

    root: Path

    @classmethod
    def existing(cls, root: Path) -> Lake:
        """A lake that is there; LightningError in one line when it is not."""
        if not root.is_dir():
            raise LightningError(f"there is no lake at {root}; start lightning-collect --lake {root}, or name another")
        return cls(root)

    @cached_property
    def wal(self) -> Path:
        """The collector's write-ahead log; nobody else reads it."""
        return self.root / "wal"

    @cached_property
    def manifest(self) -> Path:
        """One JSON file for each sealed segment: which Parquet files are live."""
        return self.root / "manifest"

    @cached_property
    def tombstones(self) -> Path:
        """Ids of deleted traces."""
        return self.root / "tombstones"

    @cached_property
    def quarantine(self) -> Path:
        """What could not be read, each with a reason beside it."""
        return self.root / "quarantine"

    @cached_property
    def derived(self) -> Path:
        """What lightning-transform writes."""
        return self.root / "derived"

    @cached_property
    def policies(self) -> Path:
        """What training publishes."""
        return self.root / "policies"

    def signal(self, name: str) -> Path:
        """The folder of `spans`, `events` or `metrics`."""
        return self.root / name
