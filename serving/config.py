"""What lightning-serve can be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, model_validator

from otel_lightning.app.config import Config


class ServeConfig(Config):
    """Settings of the model server: one of `lake` and `policy` is needed."""

    lake: Path | None = None
    policy: Path | None = Field(default=None, description="one Hugging Face model folder instead of a lake's policies")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    insecure: bool = False
    token: SecretStr | None = None
    otlp: str | None = Field(default=None, description="where token records go; default OTEL_EXPORTER_OTLP_ENDPOINT")
    threads: int = Field(default=1, gt=0, description="torch threads; more than 1 only helps larger models")
    max_batch: int = Field(default=64, gt=0, description="answers generated together")
    window_s: float = Field(default=0.004, ge=0, description="how long a request waits for others to join it")
    prefix_mib: int = Field(
        default=256, ge=0, description="keys and values kept of earlier prompts, so that none is read twice"
    )
    keep_versions: int = Field(default=3, gt=0, description="policy versions kept loaded")
    max_tokens: int = Field(default=512, gt=0, description="answer length where the request sets none")

    @model_validator(mode="after")
    def _one_source(self) -> ServeConfig:
        if (self.lake is None) == (self.policy is None):
            raise ValueError("give either --lake (serves its policies) or --policy (serves one model folder)")
        return self
