"""A picture or clip from an `http(s)://` URL, within an access policy.

The daemon can reach more than its clients: the device's own network. So where the policy allows no private address, the
host's addresses are checked, at every redirect again, and the connection is made to the checked address itself: a name
that resolves to another address in between (DNS rebinding) has no effect.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import closing

import httpx

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy, MediaSource, too_large


def download(source: MediaSource, access: AccessPolicy) -> bytes:
    """The body of the answer to a GET request.

    Raises:
        InputError: not allowed, unreachable, another status than 200, or too many redirects.
        LimitError: more than `access.max_bytes`.
    """
    named = f"{source.noun} {source.label}"
    try:
        with _client(source, access) as client:
            request = client.build_request("GET", source.reference)
            for _ in range(access.max_redirects + 1):
                _check_scheme(request.url, source, access)
                with closing(client.send(request, stream=True)) as answer:
                    if answer.next_request is None:
                        answer.raise_for_status()
                        return _read(answer, source, access)
                    # The redirect's body is not read: it may have any length. So its connection is not used again.
                    request = answer.next_request
    except ContractError:
        raise
    except httpx.HTTPStatusError as error:
        raise InputError(f"{named} answered {error.response.status_code}", field=source.field) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise InputError(f"{named} cannot be fetched ({type(error).__name__})", field=source.field) from None
    limit = f"at most {access.max_redirects}"
    raise InputError(f"{named} redirects too often", field=source.field, expected=limit)


class CheckedTransport(httpx.HTTPTransport):
    """Connects to an address of the host that the policy allows; TLS still verifies the certificate for the name."""

    def __init__(self, source: MediaSource, access: AccessPolicy) -> None:
        # A kept connection is found by its address, and could have been verified for another name.
        super().__init__(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
        self._source, self._access = source, access

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises: InputError: no host, an unknown one, or one with an address that is not allowed."""
        headers = request.headers.copy()
        headers.pop("authorization", None)  # which httpx makes of a user and password in the URL
        checked = httpx.Request(
            request.method,
            request.url.copy_with(host=self._address(request.url), username=None, password=None),
            headers=headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": request.url.host},
        )
        return super().handle_request(checked)

    def _address(self, url: httpx.URL) -> str:
        named, field = f"{self._source.noun} {self._source.label}", self._source.field
        if not url.host:
            raise InputError(f"{named} cannot be fetched (not a web address)", field=field, expected="http or https")
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(url.host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError):
            raise InputError(f"{named} has an unknown host", field=field) from None
        if not self._access.private_addresses and not all(is_public(address) for address in addresses):
            raise InputError(
                f"{named} leads into a private network",
                field=field,
                expected="a public address",
                remedy="Allow it with allow_private_urls, or send the content as a data URI.",
            )
        return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is globally reachable; of an IPv4 address within IPv6 the IPv4 address counts."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    checked = getattr(parsed, "ipv4_mapped", None) or parsed
    return checked.is_global and not checked.is_multicast


def _client(source: MediaSource, access: AccessPolicy) -> httpx.Client:
    if access.proxies:
        return httpx.Client(timeout=access.timeout_s)
    return httpx.Client(timeout=access.timeout_s, trust_env=False, transport=CheckedTransport(source, access))


def _check_scheme(url: httpx.URL, source: MediaSource, access: AccessPolicy) -> None:
    allowed = sorted(access.schemes & {"http", "https"})
    if url.scheme not in allowed:
        raise InputError(
            f"{source.noun} {source.label} cannot be fetched (not a web address)",
            field=source.field,
            expected=" or ".join(allowed),
        )


def _read(answer: httpx.Response, source: MediaSource, access: AccessPolicy) -> bytes:
    body = bytearray()
    for chunk in answer.iter_bytes():
        body += chunk
        if len(body) > access.max_bytes:
            raise too_large(source, access)
    return bytes(body)
