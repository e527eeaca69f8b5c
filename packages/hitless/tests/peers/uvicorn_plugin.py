"""A pytest plugin that runs Uvicorn's test suite for httptools on hitless's protocol."""

import pytest
import uvicorn.protocols.http.httptools_impl
from hitless.protocol import LimitedProtocol


# Uvicorn's tests recognize the protocol for httptools by this name.
class HttpToolsProtocol(LimitedProtocol):
    """The protocol of hitless, under the name of Uvicorn's protocol."""


def pytest_configure() -> None:
    uvicorn.protocols.http.httptools_impl.HttpToolsProtocol = HttpToolsProtocol  # type: ignore[misc]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The mock transport in Uvicorn's tests has no file descriptor.
    for module in ("limits", "protocol"):
        pytest.MonkeyPatch().setattr(f"hitless.{module}.has_unread_bytes", lambda _: False)
    # asyncio's transports have this method, but the mock does not.
    for item in items:
        item.getparent(pytest.Module).obj.MockTransport.can_write_eof = lambda _: False  # type: ignore[union-attr]
