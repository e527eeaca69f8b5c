"""Determine the proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` headers are trusted."""

from collections.abc import Iterable
from ipaddress import IPv4Network, ip_network


def add_mapped_addresses(trusted: str | Iterable[str]) -> list[str] | str:
    """Add the IPv4-mapped IPv6 form of each IPv4 address and network.

    For example, add `::ffff:10.0.0.0/104` for `10.0.0.0/8`. On a socket that listens on `::`, an IPv4 proxy has an
    address like `::ffff:10.0.0.5`.

    Args:
        trusted: The value of gunicorn's `forwarded_allow_ips`.

    Returns:
        The value for Uvicorn's setting of the same name.
    """
    names = [name.strip() for name in trusted.split(",")] if isinstance(trusted, str) else list(trusted)
    return "*" if names == ["*"] else [*names, *filter(None, map(_map, names))]


def _map(name: str) -> str | None:
    try:
        network = ip_network(name)
    except ValueError:  # a host name, or an invalid network, which Uvicorn ignores
        return None
    if not isinstance(network, IPv4Network):
        return None
    suffix = f"/{96 + network.prefixlen}" if "/" in name else ""
    return f"::ffff:{network.network_address}{suffix}"
