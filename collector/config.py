"""What lightning-collect can be told, in one YAML file or by flags."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from otel_lightning.app.config import Config


class CollectConfig(Config):
    """Settings of the collector; every one has a default that suits a laptop."""

    lake: Path = Path("lake")
    grpc: str = Field(default="127.0.0.1:4317", description="host:port for OTLP/gRPC; port 0 takes a free one")
    http: str = Field(default="127.0.0.1:4318", description="host:port for OTLP/HTTP; port 0 takes a free one")
    insecure: bool = Field(default=False, description="listen beyond this machine without a token and TLS")
    token_file: Path | None = Field(default=None, description="file with the bearer token senders must show")
    tls_certificate: Path | None = Field(default=None, description="PEM certificate chain of both listeners")
    tls_key: Path | None = Field(default=None, description="PEM private key that belongs to it")
    max_body_bytes: int = Field(default=64 << 20, gt=0, description="limit before and after inflation")
    max_connections: int = Field(default=256, gt=0)
    read_timeout_s: float = Field(default=30.0, gt=0, description="a sender silent for longer is cut off")
    roll_bytes: int = Field(default=32 << 20, gt=0, description="a log segment becomes Parquet at this size")
    roll_s: float = Field(default=5.0, gt=0, description="and at this age")
    queued_bytes: int = Field(default=256 << 20, gt=0, description="refuse, retryably, above this much in memory")
    pending_bytes: int = Field(default=1 << 30, gt=0, description="and above this much log that is not Parquet yet")
    reserve_bytes: int = Field(default=64 << 20, ge=0, description="and when less disk than this is free")

    @model_validator(mode="after")
    def _certificate_and_key_come_together(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together; give both or none")
        return self
