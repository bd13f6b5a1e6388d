"""A picture or clip from an `http(s)://` URL, within an access policy.

The daemon can reach more than its clients: the device's own network. So where the policy allows no private address, the
host's addresses are checked, at every redirect again, and the connection is made to the checked address itself: a name
that resolves to another address in between (DNS rebinding) has no effect.

What comes is counted as it comes, and never decoded: a server could send compressed nothings. One deadline covers all,
from the name to the last byte.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import httpx

from qwen3vl_edge.contract.errors import ContractError, InputError
from qwen3vl_edge.edge_runtime.inputs.sources.access import AccessPolicy, MediaSource, too_large
from qwen3vl_edge.edge_runtime.inputs.sources.addresses import is_public

# Threads that resolve names, of their own: a resolver that does not answer holds one for up to a minute.
_RESOLVERS = ThreadPoolExecutor(8, thread_name_prefix="resolve")
Take = Callable[[bytes], Awaitable[None]]


def download(source: MediaSource, access: AccessPolicy) -> bytes:
    """`fetch` in a thread of its own, so that it can be called from anywhere. Blocks.

    Raises:
        InputError, LimitError: as `fetch`.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="download") as thread:
        return thread.submit(asyncio.run, fetch(source, access)).result()


async def fetch(
    source: MediaSource, access: AccessPolicy, take: Take | None = None, within_s: float | None = None
) -> bytes:
    """The body of the answer to a GET request; it ends when it is cancelled.

    Args:
        take: called with each piece before it is kept; may raise.
        within_s: the seconds that are left, where not all of `access.timeout_s`.

    Raises:
        InputError: not allowed, unreachable, too slow, another status than 200, encoded, or too many redirects.
        LimitError: more than `access.max_bytes`.
    """
    named = f"{source.noun} {source.label}"
    try:
        return await asyncio.wait_for(
            _fetch(source, access, take), access.timeout_s if within_s is None else max(within_s, 0.0)
        )
    except ContractError:
        raise
    except asyncio.TimeoutError:
        limit = f"all of it within {access.timeout_s:g} s (fetch_timeout_s)"
        raise InputError(f"{named} came too slowly", field=source.field, expected=limit) from None
    except httpx.HTTPStatusError as error:
        raise InputError(f"{named} answered {error.response.status_code}", field=source.field) from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise InputError(f"{named} cannot be fetched ({type(error).__name__})", field=source.field) from None


class CheckedTransport(httpx.AsyncHTTPTransport):
    """Connects to an address of the host that the policy allows; TLS still verifies the certificate for the name."""

    def __init__(self, source: MediaSource, access: AccessPolicy, tls: ssl.SSLContext) -> None:
        # A kept connection is found by its address, and could have been verified for another name.
        super().__init__(trust_env=False, verify=tls, limits=httpx.Limits(max_keepalive_connections=0))
        self._source, self._access = source, access

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises: InputError: no host, an unknown one, or one with an address that is not allowed."""
        checked = httpx.Request(
            request.method,
            request.url.copy_with(host=await self._address(request.url), username=None, password=None),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": request.url.host},
        )
        return await super().handle_async_request(checked)

    async def _address(self, url: httpx.URL) -> str:
        named, field = f"{self._source.noun} {self._source.label}", self._source.field
        if not url.host:
            raise InputError(f"{named} cannot be fetched (not a web address)", field=field, expected="http or https")
        port = url.port or (443 if url.scheme == "https" else 80)
        resolve = functools.partial(socket.getaddrinfo, url.host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, resolve)
        except (OSError, UnicodeError):
            raise InputError(f"{named} has an unknown host", field=field) from None
        addresses = [str(entry[4][0]) for entry in found]
        if not self._access.private_addresses and not all(is_public(address) for address in addresses):
            raise InputError(
                f"{named} leads into a private network",
                field=field,
                expected="a public address",
                remedy="Allow it with allow_private_urls, or send the content as a data URI.",
            )
        return addresses[0]


async def _fetch(source: MediaSource, access: AccessPolicy, take: Take | None) -> bytes:
    tls = await asyncio.to_thread(_tls)
    async with _client(source, access, tls) as client:
        request = client.build_request("GET", source.reference, headers={"Accept-Encoding": "identity"})
        for _ in range(access.max_redirects + 1):
            _check_scheme(request.url, source, access)
            answer = await client.send(request, stream=True)
            async with aclosing(answer):
                if answer.next_request is None:
                    answer.raise_for_status()
                    return await _read(answer, source, access, take)
                # The redirect's body is not read: it may have any length. So its connection is not used again.
                request = answer.next_request
    limit = f"at most {access.max_redirects}"
    raise InputError(f"{source.noun} {source.label} redirects too often", field=source.field, expected=limit)


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """Reading the authorities takes some 20 ms."""
    return httpx.create_ssl_context()


def _client(source: MediaSource, access: AccessPolicy, tls: ssl.SSLContext) -> httpx.AsyncClient:
    if access.proxies:
        return httpx.AsyncClient(timeout=access.timeout_s, verify=tls)
    transport = CheckedTransport(source, access, tls)
    return httpx.AsyncClient(timeout=access.timeout_s, trust_env=False, transport=transport)


def _check_scheme(url: httpx.URL, source: MediaSource, access: AccessPolicy) -> None:
    allowed = sorted(access.schemes & {"http", "https"})
    if url.scheme not in allowed:
        raise InputError(
            f"{source.noun} {source.label} cannot be fetched (not a web address)",
            field=source.field,
            expected=" or ".join(allowed),
        )


async def _read(answer: httpx.Response, source: MediaSource, access: AccessPolicy, take: Take | None) -> bytes:
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise InputError(
            f"{source.noun} {source.label} is encoded",
            field=source.field,
            expected="no Content-Encoding, as was asked for",
            got=encoding[:40],
        )
    announced = answer.headers.get("content-length", "")
    if announced.isdigit() and (len(announced) > 18 or int(announced) > access.max_bytes):
        raise too_large(source, access, announced[:40])
    body = bytearray()
    async for chunk in answer.aiter_raw():
        if len(body) + len(chunk) > access.max_bytes:
            raise too_large(source, access, "more")
        if take is not None:
            await take(chunk)
        body += chunk
    return bytes(body)
