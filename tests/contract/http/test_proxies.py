"""`X-Forwarded-For` is believed from named proxies, and from them the right-most address that is not a proxy's."""

from __future__ import annotations

import pytest

from qwen3vl_edge.contract.http.connection_table import ConnectionLimits
from tests.support.raw_http import Served, answer, serving_http


def client_as_seen(served: Served, *forwarded: str) -> str:
    lines = [f"X-Forwarded-For: {value}" for value in forwarded]
    with served.connect() as connection:
        connection.sendall("\r\n".join(["GET / HTTP/1.1", "Host: here", *lines, "", ""]).encode())
        status, _, body = answer(connection)
    assert status == 200
    return str(body["client"])


@pytest.mark.parametrize("proxies", [(), ("192.0.2.1",), ("10.0.0.0/8", "2001:db8::/32")])
def test_others_are_not_believed(proxies: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own variable
    with serving_http(ConnectionLimits(trusted_proxies=proxies), "auto") as served:
        assert client_as_seen(served, "198.51.100.1") == "127.0.0.1"


@pytest.mark.parametrize("proxies", [("127.0.0.1", "192.0.2.0/24"), ("127.0.0.0/8", "192.0.2.0/24")])
def test_a_named_one_is_believed(proxies: tuple[str, ...]) -> None:
    with serving_http(ConnectionLimits(trusted_proxies=proxies), "auto") as served:
        assert client_as_seen(served) == "127.0.0.1"
        assert client_as_seen(served, "198.51.100.1") == "198.51.100.1"
        assert client_as_seen(served, "198.51.100.9, 198.51.100.1") == "198.51.100.1"
        assert client_as_seen(served, "127.0.0.1, 198.51.100.1, 192.0.2.9") == "198.51.100.1"
        assert client_as_seen(served, "198.51.100.9", "198.51.100.1, 192.0.2.9") == "198.51.100.1"
        assert client_as_seen(served, "2001:db8::7") == "2001:db8::7"
