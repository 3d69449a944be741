"""Where our listeners may listen: loopback by default, elsewhere only with a token and TLS or on demand.

Every server of ours (collect, serve, view) takes its address through here, so the rule has one home.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass

from otel_lightning.app.errors import LightningError, UsageError


@dataclass(frozen=True)
class Address:
    """A host and a TCP port; port 0 asks the operating system for a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, option: str = "address") -> Address:
        """Read `host:port`, `[v6]:port` or a bare port; UsageError names `option` otherwise."""
        host, _, port = text.strip().rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        if not port.isdecimal() or int(port) > 65535:
            raise UsageError(f"{option} '{text}' is not host:port with a port from 0 to 65535, e.g. 127.0.0.1:4318")
        return cls(host, int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def require_safe(address: Address, *, token: bool, tls: bool, insecure: bool) -> None:
    """Raise UsageError when `address` would be reachable from elsewhere without protection."""
    if address.is_loopback or insecure or (token and tls):
        return
    raise UsageError(
        f"{address} can be reached from other machines; configure a token and TLS, listen on 127.0.0.1, "
        "or say --insecure if a network policy protects it"
    )


def bind(address: Address, backlog: int = 512) -> socket.socket:
    """A bound, listening TCP socket; LightningError in one line when the port is busy or not ours."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address.host, address.port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise LightningError(_bind_problem(address, error)) from None
    listener.setblocking(False)
    return listener


def bound(listener: socket.socket) -> Address:
    """The address a listener really has (its port is known even if 0 was asked for)."""
    host, port = listener.getsockname()[:2]
    return Address(host, port)


def _bind_problem(address: Address, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        advice = "stop what listens there or choose another port (0 = any free one)"
        return f"port {address.port} on {address.host} is busy; {advice}"
    if error.errno == errno.EACCES:
        return f"may not listen on {address}; choose a port above 1023"
    return f"cannot listen on {address} ({error.strerror or error}); choose an address of this machine"
