"""Listeners stay on this machine unless they are protected or told otherwise."""

from __future__ import annotations

import socket

import pytest

from otel_lightning.app.errors import LightningError, UsageError
from otel_lightning.app.listen import Address, bind, bound, require_safe


@pytest.mark.parametrize("text", ["127.0.0.1:4318", "localhost:0", "[::1]:80"])
def test_loopback_needs_no_protection(text: str) -> None:
    require_safe(Address.parse(text), token=False, tls=False, insecure=False)


@pytest.mark.parametrize("text", ["0.0.0.0:4318", "[::]:4318", "10.1.2.3:80", "example.org:80"])
def test_other_addresses_need_token_and_tls_or_insecure(text: str) -> None:
    address = Address.parse(text)
    for token, tls in [(False, False), (True, False), (False, True)]:
        with pytest.raises(UsageError, match="--insecure"):
            require_safe(address, token=token, tls=tls, insecure=False)
    require_safe(address, token=True, tls=True, insecure=False)
    require_safe(address, token=False, tls=False, insecure=True)


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1:", "host:99999", "host:-1", ""])
def test_an_address_without_a_port_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="host:port"):
        Address.parse(text, "--http")


def test_a_busy_port_is_one_line_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LightningError, match=f"port {port} on 127.0.0.1 is busy"):
            bind(Address("127.0.0.1", port))


def test_port_zero_is_answered_with_the_real_one() -> None:
    listener = bind(Address("127.0.0.1", 0))
    try:
        assert bound(listener).port > 0
    finally:
        listener.close()
