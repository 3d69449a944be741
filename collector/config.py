"""What lightning-collect can be told, in one YAML file or by flags."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from otel_lightning.app.config import Config


class CollectConfig(Config):
    """Settings of the collector; every one has a default that suits a laptop."""

    lake: Path = Path("lake")
    grpc: str = "127.0.0.1:4317"
    http: str = "127.0.0.1:4318"
    insecure: bool = False
    token: SecretStr | None = Field(default=None, description="bearer token; better LIGHTNING_COLLECT_TOKEN")
    max_body_bytes: int = Field(default=64 << 20, gt=0, description="limit before and after inflation")
    max_connections: int = Field(default=256, gt=0)
    read_timeout_s: float = Field(default=30.0, gt=0, description="a sender silent for longer is cut off")
    roll_bytes: int = Field(default=64 << 20, gt=0, description="a segment is sealed at this size")
    roll_s: float = Field(default=5.0, gt=0, description="and at this age")
    pending_bytes: int = Field(default=1 << 30, gt=0, description="refuse (retryably) above this backlog")
    reserve_bytes: int = Field(default=64 << 20, ge=0, description="refuse when less disk is left")
