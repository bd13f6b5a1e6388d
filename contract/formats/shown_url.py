"""A URL as errors and logs may show it: without what may be a secret."""

from __future__ import annotations


def shown_url(url: str) -> str:
    """The URL without user, password and fragment, and of a query no more than that there is one.

    What is no URL with an authority (RFC 3986, 3.2) stays as it is.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    beyond, _, _ = rest.partition("#")
    address, query, _ = beyond.partition("?")
    host, slash, path = address.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}{'?…' if query else ''}"
