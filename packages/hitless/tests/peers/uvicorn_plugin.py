"""A pytest plugin for Uvicorn's suite: hitless' protocol instead of Uvicorn's for httptools."""

import pytest
import uvicorn.protocols.http.httptools_impl
from hitless.protocol import LimitedProtocol


# The name by which Uvicorn's tests know the protocol for httptools.
class HttpToolsProtocol(LimitedProtocol):
    """hitless' protocol."""


def pytest_configure() -> None:
    uvicorn.protocols.http.httptools_impl.HttpToolsProtocol = HttpToolsProtocol  # type: ignore[misc]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The mock transport of Uvicorn's tests has no file descriptor.
    for module in ("limits", "protocol"):
        pytest.MonkeyPatch().setattr(f"hitless.{module}.has_unread_bytes", lambda _: False)
    # asyncio's transports have this method, the mock does not.
    for item in items:
        item.getparent(pytest.Module).obj.MockTransport.can_write_eof = lambda _: False  # type: ignore[union-attr]
