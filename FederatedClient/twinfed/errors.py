"""What can be wrong, told in plain words: a stable code, the reason, and what to do about it."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from whoever runs the program: one line that says what is wrong and what to do."""


class Refusal(InputError):
    """A message or an update that is not taken.

    Attributes:
        code: stable name of the reason, for programs (``wrong-shape``).
        reason: what is wrong, in plain words.
        remedy: what the sender can do.
        status: the HTTP status that says the same.
    """

    def __init__(self, code: str, reason: str, remedy: str, status: int = 422) -> None:
        super().__init__(f"{reason} {remedy}")
        self.code, self.reason, self.remedy, self.status = code, reason, remedy, status

    def to_dict(self) -> dict[str, str]:
        return {"code": self.code, "reason": self.reason, "remedy": self.remedy}


def shown(text: object, longest: int = 60) -> str:
    """A sender's text as it may be repeated in an answer: printable and short."""
    line = "".join(letter if letter.isprintable() else "?" for letter in str(text)[: longest + 1])
    return line if len(line) <= longest else line[: longest - 1] + "…"
