"""Pseudonyms: what stands for a patient in the data folder, so that neither name nor number is stored anywhere.

A keyed hash (HMAC-SHA256, RFC 2104) of the patient's id. Without the key nobody can find out by trying ids which
patient a pseudonym stands for; with it the same patient always gets the same one. The key is made on first use, is
readable by its owner only, and never leaves the machine.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import re
import secrets
import unicodedata
from contextlib import suppress
from pathlib import Path

from twinseg.errors import InputError, OutOfSpaceError
from twinseg.home import data_folder

KEY_BYTES = 32
PARTS = (("train", 0.70), ("validation", 0.15), ("test", 0.15))
"""The parts of a split and their shares of the patients."""


class Pseudonyms:
    """The hashes of one key. Each use has a purpose, so that one use tells nothing about another."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @property
    def key_id(self) -> str:
        """Tells keys apart and says nothing about them."""
        return self._hash("key", b"")[:8]

    def patient(self, patient_id: str) -> str:
        """The patient's pseudonym: 16 hexadecimal digits."""
        composed = unicodedata.normalize("NFC", patient_id.strip())  # a Mac writes é as two characters
        return self._hash("patient", composed.encode("utf-8", "surrogatepass"))[:16]

    def content(self, digest: bytes) -> str:
        """What stands for a digest of images: 12 hexadecimal digits."""
        return self._hash("content", digest)[:12]

    def part(self, pseudonym: str) -> str:
        """The part of the split, train, validation or test, that a patient belongs to, now and always."""
        drawn = int(self._hash("split", pseudonym.encode())[:12], 16) / 16**12
        for name, share in PARTS:
            drawn -= share
            if drawn < 0:
                return name
        return PARTS[-1][0]

    def _hash(self, purpose: str, content: bytes) -> str:
        return hmac.new(self._key, purpose.encode() + b"\0" + content, hashlib.sha256).hexdigest()


def load_pseudonyms(file: Path | None = None) -> Pseudonyms:
    """The pseudonyms of this machine's key (``pseudonyms.key`` in the data folder), which is made if there is none.

    Raises InputError where the file cannot be read or written or is no key.
    """
    file = file or data_folder() / "pseudonyms.key"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            _make_key(file)
        text = file.read_text("ascii")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutOfSpaceError(f"{file}: no space left for the key of the pseudonyms; free some") from error
        raise InputError(f"{file}: the key of the pseudonyms cannot be read ({error.strerror}); mend that") from error
    except UnicodeDecodeError:
        text = ""
    if not re.fullmatch(f"[0-9a-f]{{{2 * KEY_BYTES}}}", text):
        raise InputError(f"{file}: this is no whole key of the pseudonyms; restore the file from a backup")
    return Pseudonyms(bytes.fromhex(text))


def _make_key(file: Path) -> None:
    """Put a new key into its place in one stroke; if another process was faster, its key stays."""
    temporary = file.with_name(f".{secrets.token_hex(4)}-{file.name}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secrets.token_hex(KEY_BYTES))
            opened.flush()
            os.fsync(opened.fileno())
        with suppress(FileExistsError):
            try:
                os.link(temporary, file)  # never replaces a file
            except PermissionError:  # a file system without links
                os.rename(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
