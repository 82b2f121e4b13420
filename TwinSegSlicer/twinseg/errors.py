"""Errors that a user can mend, told in one line: what is wrong, where, and what to do."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message is one line that names the file, what is wrong and what to do."""


class OutOfSpaceError(InputError):
    """The disk or the memory does not suffice; nothing half-written was left behind."""


class Cancelled(Exception):
    """The user, or a callback, stopped the work; what was there before is unchanged."""
