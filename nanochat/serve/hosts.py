"""Names that a server on this machine alone answers to.

A page from elsewhere, open in a browser here, could otherwise have its own name point to 127.0.0.1 and talk to the model (DNS rebinding),
or send requests across sites.
"""

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Whether an address or a name means this machine and can be reached from nowhere else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Hosts:
    """The names that a request may be addressed to, and that the page which sends it may come from."""

    def __init__(self, bound: str, more: str = ""):
        """bound: what the server listens on; every name is taken where others may reach it. more: further names, separated by commas."""
        self._any = not is_loopback(bound) and not more
        self._names = {name.strip().lower() for name in more.split(",") if name.strip()} | {bound.lower()}

    def refuse(self, headers: dict[bytes, bytes]) -> str:
        """Why a request with these headers is not answered; empty where it is."""
        if self._any:
            return ""
        for header, text in (("Host", headers.get(b"host", b"")), ("Origin", headers.get(b"origin", b""))):
            try:
                name = urlsplit(text.decode("latin-1") if header == "Origin" else f"//{text.decode('latin-1')}").hostname
            except ValueError:
                name = None
            if text and not (name and (is_loopback(name) or name in self._names)):
                return f"the request's {header} is not a name of this server: --allowed_hosts NAME lets it in"
        return ""
