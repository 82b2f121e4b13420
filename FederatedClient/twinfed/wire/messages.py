"""What a site reports with its update: numbers about its cases, never anything of a case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import Refusal, shown

MOST_LABELS = 64
LARGEST_COUNT = 2**53 - 1
LARGEST_DISTANCE = 1000.0  # mm: longer than a body part
WHOLE = 1000  # thousandths


@dataclass(frozen=True, kw_only=True)
class Report:
    """A site's numbers for a round; the adaptive weights use them.

    Args:
        samples: training cases, at least 1.
        labels: for each label (its name) its share of all labelled voxels of the training cases (classification: of
            the pictures), in thousandths; see `thousandths`.
        dice_before, dice_after: mean Dice (classification: accuracy) on the site's validation cases, in [0, 1], of
            the global model as it came in and of the local model after training.
        hd95_before, hd95_after: 95th percentile Hausdorff distance in mm, likewise.

    Raises:
        Refusal: a number that cannot be (code ``bad-report``, or ``bad-samples``).
    """

    samples: int
    labels: Mapping[str, int] = field(default_factory=dict)
    dice_before: float | None = None
    dice_after: float | None = None
    hd95_before: float | None = None
    hd95_after: float | None = None

    def __post_init__(self) -> None:
        if type(self.samples) is not int or not 1 <= self.samples <= LARGEST_COUNT:
            raise Refusal(
                "bad-samples", f"{shown(self.samples)} is no number of cases.", "Report the number of training cases."
            )
        if not isinstance(self.labels, Mapping) or len(self.labels) > MOST_LABELS:
            raise _bad("labels", self.labels)
        for name, count in self.labels.items():
            if not isinstance(name, str) or not 0 < len(name) <= 64:
                raise _bad("labels", name)
            if type(count) is not int or not 0 <= count <= WHOLE:
                raise _bad(f"labels.{shown(name, 20)}", count)
        if sum(self.labels.values()) > WHOLE:
            raise _bad("labels", dict(self.labels))
        for name, largest in (
            ("dice_before", 1.0),
            ("dice_after", 1.0),
            ("hd95_before", LARGEST_DISTANCE),
            ("hd95_after", LARGEST_DISTANCE),
        ):
            value = getattr(self, name)
            if value is not None and (type(value) not in (int, float) or not 0 <= value <= largest):
                raise _bad(name, value)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "labels": dict(self.labels)}

    @classmethod
    def from_dict(cls, content: Any) -> Report:
        """Read a report that a stranger wrote.

        Raises:
            Refusal: a field too many, none of ``samples``, or a number that cannot be.
        """
        if not isinstance(content, dict) or "samples" not in content:
            raise _bad("samples", None)
        if unknown := content.keys() - cls.__dataclass_fields__.keys():
            raise _bad(min(unknown), content[min(unknown)])
        return cls(**content)

    def diversity(self) -> float:
        """Shannon entropy of the labels' shares over its maximum: 1 where all labels are as frequent, 0 for one alone.

        A site that reports no labels counts as 1, so that nothing changes for it.
        """
        counts = [count for count in self.labels.values() if count]
        if len(self.labels) < 2:
            return 1.0
        total = sum(counts)
        entropy = -sum(count / total * math.log(count / total) for count in counts)
        return max(0.0, entropy / math.log(len(self.labels)))


def thousandths(counts: Mapping[str, float]) -> dict[str, int]:
    """Shares of a whole, rounded by the largest remainder, so that they sum to 1000; all 0 where there is nothing."""
    total = sum(counts.values())
    if not total:
        return dict.fromkeys(counts, 0)
    exact = {name: WHOLE * count / total for name, count in counts.items()}
    shares = {name: int(share) for name, share in exact.items()}
    left = WHOLE - sum(shares.values())
    for name in sorted(exact, key=lambda name: shares[name] - exact[name])[:left]:
        shares[name] += 1
    return shares


def _bad(name: str, value: object) -> Refusal:
    return Refusal(
        "bad-report",
        f"The report's {shown(name)} cannot be {shown(value)}.",
        "Report what was measured, or leave it out.",
    )
