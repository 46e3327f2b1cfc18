"""Names that a server on this machine alone answers to.

A page from elsewhere, open in a browser here, could otherwise have its own name point to 127.0.0.1 and talk to the model (DNS rebinding),
or send requests across sites.
"""

import ipaddress
import re
from urllib.parse import urlsplit

from nanochat.common.errors import UserError

NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
"""A name as headers bring it; some who run containers have `_` in theirs."""


def is_loopback(host: str) -> bool:
    """Whether an address or a name means this machine and can be reached from nowhere else."""
    host = _canonical(host)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _canonical(host: str) -> str:
    """The one spelling of a name or an address, without a port."""
    host = host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def _allowed(entry: str) -> str:
    """An entry of --allowed_hosts as headers bring it; `*` for every name, `.NAME` for those below one. Raises UserError for none."""
    wrong = UserError(f"--allowed_hosts: {entry!r} is no name: give chat.example.org, *.example.org, an address, or * for any")
    try:
        return _canonical(str(ipaddress.ip_address(entry.strip("[]"))))
    except ValueError:
        pass
    try:
        parts = urlsplit(entry if "://" in entry else f"//{entry}")
        name, _ = _canonical(parts.hostname or ""), parts.port
        if name == "*":
            return name
        below = "." if name.startswith("*.") else ""
        name = name.removeprefix("*.")
        if not name.isascii():
            import idna

            name = idna.encode(name, uts46=True).decode()
    except ValueError:
        raise wrong from None
    if "@" in parts.netloc or not (NAME.fullmatch(name) or ":" in name):
        raise wrong
    return below + name


class Hosts:
    """The names that a request may be addressed to, and that the page which sends it may come from."""

    def __init__(self, bound: str, more: str = "", called: str = ""):
        """bound: the address that the server listens on; every name is taken where others may reach it, unless more are given.

        more: further names, separated by commas; `*` for every one, `*.NAME` for those below one. called: what bound was given as.
        Raises UserError for what is no name.
        """
        names = {_allowed(entry.strip()) for entry in more.split(",") if entry.strip()}
        self._any = "*" in names or (not is_loopback(bound) and not names)
        self._below = tuple(name for name in names if name.startswith("."))
        self._names = names | {_canonical(bound), _canonical(called)}

    def refuse(self, headers: dict[bytes, bytes]) -> str:
        """Why a request with these headers is not answered; empty where it is."""
        if self._any:
            return ""
        for header, text in (("Host", headers.get(b"host", b"")), ("Origin", headers.get(b"origin", b""))):
            try:
                name = urlsplit(text.decode("latin-1") if header == "Origin" else f"//{text.decode('latin-1')}").hostname
            except ValueError:
                name = None
            if text and not (name and self._knows(_canonical(name))):
                return f"the request's {header} is not a name of this server: --allowed_hosts NAME lets it in"
        return ""

    def _knows(self, name: str) -> bool:
        return is_loopback(name) or name in self._names or name.endswith(self._below)
