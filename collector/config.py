"""What lightning-collect can be told: in one YAML file, by environment variables (LIGHTNING_COLLECT_…), by flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from otel_lightning.app.config import Config

ENVIRONMENT = "LIGHTNING_COLLECT_"
# Variables that are no settings: secrets, the file's name, which decoder to load.
OTHER_VARIABLES = ("TOKEN", "HASH_KEY", "CONFIG", "DECODER")
NAMED_RULES = ("email", "phone", "card", "secret")
NamedRule = Literal["email", "phone", "card", "secret"]


class RedactConfig(Config):
    """What is taken out of every request before it is written anywhere."""

    rules: tuple[NamedRule, ...] = Field(default=(), description="what is replaced wherever it stands in a text")
    patterns: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str] = Field(
        default_factory=dict, description="name: RE2 pattern, replaced by [name]"
    )
    drop: tuple[str, ...] = Field(default=(), description="attribute keys to leave out; a trailing * takes a prefix")
    hash: tuple[str, ...] = Field(default=(), description="attribute keys to replace by a keyed hash of their value")
    hash_key_file: Path | None = Field(default=None, description="file with the key; or LIGHTNING_COLLECT_HASH_KEY")
    hide: tuple[str, ...] = Field(default=(), description="services (service.name) whose content is left out; * is all")
    drop_token_ids: bool = Field(default=False, description="store no token ids and log-probabilities at all")


class ConsentConfig(Config):
    """Content is stored only where an attribute of the span, or else of its resource, says yes."""

    attribute: str = Field(min_length=1)
    values: tuple[str, ...] = Field(default=("true", "yes"), min_length=1)
    otherwise: Literal["hide", "drop"] = Field(default="hide", description="leave out the content, or the whole row")

    @field_validator("values", mode="before")
    @classmethod
    def _as_yaml_reads_them(cls, value: object) -> object:
        # YAML makes a truth value of `yes`: either spelling of an attribute is meant then.
        if not isinstance(value, list | tuple):
            return value
        truths = {True: ("true", "yes"), False: ("false", "no")}
        return tuple(text for item in value for text in (truths[item] if isinstance(item, bool) else (str(item),)))


class ForwardConfig(Config):
    """Another OTLP endpoint that gets what was stored."""

    endpoint: str = Field(description="base URL; /v1/traces, /v1/logs and /v1/metrics are appended")
    headers_file: Path | None = Field(default=None, description="file with `name: value` lines, e.g. authorization")
    signals: tuple[Literal["spans", "events", "metrics"], ...] = ("spans", "events", "metrics")
    max_backlog_bytes: int = Field(default=1 << 30, gt=0, description="kept for it at most; beyond, the oldest goes")
    timeout_s: float = Field(default=10.0, gt=0)
    ca_file: Path | None = Field(default=None, description="PEM certificates to trust instead of the system's")
    insecure: bool = Field(default=False, description="plain http to another machine")

    @field_validator("endpoint")
    @classmethod
    def _is_a_base_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http:// or https:// URL")
        if parts.username is not None or parts.password is not None:
            raise ValueError("must hold no user or password; put an authorization line into headers_file")
        if parts.query or parts.fragment:
            raise ValueError("must be a base URL without query or fragment")
        return value.rstrip("/")


class CollectConfig(Config):
    """Settings of the collector; every one has a default that suits a laptop."""

    lake: Path = Path("lake")
    grpc: str = Field(default="127.0.0.1:4317", description="host:port for OTLP/gRPC; port 0 takes a free one")
    http: str = Field(default="127.0.0.1:4318", description="host:port for OTLP/HTTP; port 0 takes a free one")
    insecure: bool = Field(default=False, description="listen beyond this machine without a token and TLS")
    token_file: Path | None = Field(default=None, description="file with the bearer token senders must show")
    tls_certificate: Path | None = Field(default=None, description="PEM certificate chain of both listeners")
    tls_key: Path | None = Field(default=None, description="PEM private key that belongs to it")
    tls_client_ca: Path | None = Field(default=None, description="PEM certificates; senders must show one signed by it")
    allowed_hosts: tuple[str, ...] = Field(default=(), description="public names by which senders may call this host")
    redact: RedactConfig = RedactConfig()
    consent: ConsentConfig | None = None
    forward: tuple[ForwardConfig, ...] = ()
    log: Literal["text", "json"] = "text"
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
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key; give all three")
        return self
