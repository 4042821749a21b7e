"""Names under which pages of ours may be asked for."""

import ipaddress
import re
import socket


def own_names(host: str) -> frozenset[str]:
    """Names under which the page may be asked for, beside addresses in numbers: a page of another site that points its own
    name at this machine is thereby refused.
    """
    return frozenset({"localhost", host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to serve at."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_own(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is an address in numbers or one of our names, with or without a port."""
    name = host.rsplit(":", 1)[0] if re.search(r":\d*$", host) and not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower().rstrip(".") in names
    return True
