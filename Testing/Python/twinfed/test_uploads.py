"""Uploads in pieces: interrupted, damaged, too large, and with the disk full."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from twinfed.aggregator.verify import faults
from twinfed.wire import hash_file

Make = Callable[..., Any]


def test_an_upload_goes_on_where_it_was(web: Make) -> None:
    one = web()
    path = one.room.update("s1", 1)
    content, digest = path.read_bytes(), hash_file(path)
    cuts = [0, 100_000, 200_000, len(content)]
    for first, last in pairwise(cuts):
        assert one.get(f"/api/v1/rounds/1/update/{digest}").json() == {"state": "uploading", "received": first}
        answer = one.put("s1", content[first:last], digest, offset=first, length=len(content))
        assert answer.status_code == 200
        again = one.put("s1", content[first:last], digest, offset=first, length=len(content))
        assert again.json() == answer.json()

    assert answer.json()["state"] == "accepted"
    assert len(one.room.store.rows("SELECT * FROM updates")) == 1
    assert one.put("s1", b"", digest, offset=len(content), length=len(content)).json()["state"] == "accepted"
    assert one.put("s1", b"x", digest, offset=5, length=len(content)).json()["state"] == "accepted"


def test_a_damaged_piece_is_sent_again_alone(web: Make) -> None:
    one = web()
    path = one.room.update("s1", 1)
    content, digest = path.read_bytes(), hash_file(path)
    one.put("s1", content[:1000], digest, length=len(content))

    answer = one.put("s1", content[1000:], digest, offset=1000, length=len(content), **{"Upload-Checksum": "00000000"})

    assert one.refused(answer) == "wrong-checksum"
    assert one.get(f"/api/v1/rounds/1/update/{digest}").json()["received"] == 1000
    assert one.put("s1", content[1000:], digest, offset=1000, length=len(content)).json()["state"] == "accepted"


def test_oversized_truncated_and_misnamed_uploads(web: Make) -> None:
    one = web(limits={"chunk_mb": 1})
    path = one.room.update("s1", 1)
    content, digest = path.read_bytes(), hash_file(path)

    assert one.refused(one.put("s1", content, digest, length=10**12)) == "too-large"
    assert one.refused(one.put("s1", content, digest, length=5)) == "too-large"
    assert one.refused(one.put("s1", bytes(1_500_000), digest, length=3_000_000)) == "too-large"
    assert one.refused(one.put("s1", content[:-1], "0" * 64)) == "wrong-hash"
    assert one.refused(one.put("s1", content, "../../../etc/passwd")) in ("not-found", "bad-hash")
    assert one.refused(one.put("s1", content, "A" * 64)) == "bad-hash"
    assert one.refused(one.put("s1", content, digest, number=2)) == "wrong-round"
    assert one.refused(one.put("s1", content, digest, number=-1)) == "wrong-round"
    assert one.refused(one.put("s1", content, digest, offset=77, length=len(content) + 77)) == "wrong-offset"
    assert one.put("s1", content, digest).json()["state"] == "accepted"


@pytest.fixture
def small_disk(tmp_path: Path, mount_small_disk: Callable[[Path, str], Path]) -> Path:
    """A disk where the first federation of a test has its folder."""
    return mount_small_disk(tmp_path / "room0" / "aggregator", "4m")


def test_a_full_disk_is_told_and_passes(web: Make, small_disk: Path) -> None:
    one = web(limits={"free_mb": 1e-6})
    paths = [one.room.update(name, seed) for seed, name in enumerate(one.tokens, start=1)]
    filler = small_disk / "filler"

    fill(filler, small_disk, leave=400_000)
    assert one.send("s1", paths[0]).json()["state"] == "accepted"
    full = one.send("s2", paths[1])
    assert (full.status_code, one.refused(full)) == (507, "disk-full")
    filler.unlink()
    assert one.send("s2", paths[1]).json()["state"] == "accepted"
    fill(filler, small_disk, leave=400_000)  # enough for the last update, not for the next model
    assert one.send("s3", paths[2]).json()["state"] == "accepted"
    with pytest.raises(OSError, match="space"):
        advance_until_it_fails(one.room.federation)
    assert one.room.federation.current()["state"] == "closing"
    assert "Waits for room" in one.room.federation.current()["note"]
    filler.unlink()
    one.wait(2)

    assert list(faults(small_disk)) == []


def advance_until_it_fails(federation: Any) -> None:
    """Until the disk is full; another thread may be at it too."""
    while federation.current()["number"] == 1:
        federation.advance()


def fill(path: Path, disk: Path, leave: int) -> None:
    """Take the room on a disk but for ``leave`` bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    path.write_bytes(bytes(max(0, free - leave)))


def test_after_a_restart_the_hash_is_that_of_the_whole_file(web: Make) -> None:
    one = web()
    path = one.room.update("s1", 1)
    content, digest = path.read_bytes(), hash_file(path)
    one.put("s1", content[:1000], digest, length=len(content))
    again = one.restarted()

    assert again.put("s1", content[1000:], digest, offset=1000, length=len(content)).json()["state"] == "accepted"
    other = one.room.update("s2", 2).read_bytes()
    again.put("s2", other[:1000], digest_of(other), length=len(other))
    last = again.restarted()
    broken = last.put("s2", bytes(len(other) - 1000), digest_of(other), offset=1000, length=len(other))
    assert one.refused(broken) == "wrong-hash"


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_new_upload_discards_the_one_before(web: Make) -> None:
    one = web()
    first, second = one.room.update("s1", 1).read_bytes(), one.room.update("s1", 2).read_bytes()
    one.put("s1", first[:1000], digest_of(first), length=len(first))

    one.put("s1", second[:2000], digest_of(second), length=len(second))

    assert one.get(f"/api/v1/rounds/1/update/{digest_of(first)}").json()["received"] == 0
    assert one.get(f"/api/v1/rounds/1/update/{digest_of(second)}").json()["received"] == 2000
    assert len(list((one.room.store.folder / "uploads").iterdir())) == 1
