"""Fixtures for tests of scripted modules: ``pytest_plugins = ["SlicerHost.pytest_plugin"]``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .host import Host, start


@pytest.fixture
def slicer_host() -> Iterator[Host]:
    """The running host with an empty scene and no module. An unexpected exception or error dialog fails the test."""
    host = start()
    host.faults.unexpected.clear()
    yield host
    host.process_events()
    unexpected = list(host.faults.unexpected)
    host.reset()
    host.faults.unexpected[:] = unexpected + host.faults.unexpected
    host.faults.check()
