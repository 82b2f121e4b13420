"""The folder's tables carry a version, so that an older program does not write into what it does not know."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from twinfed.aggregator.store import VERSION, Store
from twinfed.wire import InputError

Make = Callable[..., Any]


def set_version(one: Any, version: int) -> None:
    one.store.close()
    with closing(sqlite3.connect(one.store.folder / "aggregator.sqlite")) as db:
        db.execute(f"PRAGMA user_version = {version}")


def test_a_folder_without_a_version_gets_one(room: Make) -> None:
    one = room()
    set_version(one, 0)

    one.open()

    assert one.store.row("PRAGMA user_version")[0] == VERSION
    assert one.federation.current()["number"] == 1


def test_a_newer_folder_is_refused_in_one_line(room: Make) -> None:
    one = room()
    set_version(one, VERSION + 1)

    with pytest.raises(InputError, match="a newer version of TwinSegSlicer wrote it") as refused:
        Store(one.store.folder)

    assert "\n" not in str(refused.value)
