"""What the names of folders and files tell of a case: its patient, its site, its date or visit.

A visit that is not known as one becomes a patient of its own, and one patient's visits may part between training and
test. So more is taken for a visit here than is certain; `split_cases` tells how many patients there are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

_SURGERY = r"op(?:erative(?:ly)?|eration)?|surg(?:ery|ical)|treatment|therapy|rt|radiation|radiotherapy|chemo"
_DATE = (
    r"(?:19|20)\d{2}[-_.]?(?:0\d|1[0-2])[-_.]?[0-3]\d"
    r"|[0-3]?\d[-_.][0-3]?\d[-_.](?:19|20)\d{2}(?:-.+)?"  # 10.3.2018, and TCIA's 03-10-2018-NA-MR BRAIN-12345
    rf"|(?:(?:early|late)[-_ ]?)?(?:pre|prae|pr\u00e4|post|intra)[-_ ]?(?:{_SURGERY})(?:[-_ ]?\d{{1,2}})?"
    r"|pre|post|baseline|initial|screening|frame\d+|ses-[a-z0-9]+|fu[-_ ]?\d{1,3}"
    r"|(?:visit|ses|session|tp|time|timepoint|week|month|day|year|follow[-_ ]?up)[-_ ]?\d{0,4}(?:[-_.]\d{1,2})?"
    r"|\d{1,3}[-_ ]?(?:days?|weeks?|months?|years?)"
)
DATE = re.compile(_DATE, re.IGNORECASE)
# Folders that may be visits or patients; the numbers alone tell less than those behind a word for an examination.
_NUMBERED = re.compile(r"(?P<word>scan|exam|examination|study|mri?)[-_ ]?\d{1,3}|[vm]?\d{1,2}", re.IGNORECASE)
MOST_VISITS = 9  # on average; folders with more examinations than that are hospitals
# Folders that sort files by kind or phase. They say nothing of the site or the patient.
CONTAINER = re.compile(
    r"(images?|labels?)(tr|ts)?|masks?|volumes?(_pt\d+)?|segmentations?|anat|nifti|hgg|lgg|train(ing)?|valid(ation)?"
    r"|test(ing)?|(training|test(ing)?)[ _-]?batch[ _-]?\d+|cases|patients|data",
    re.IGNORECASE,
)
# Names that tell the patient and the time point; in BraTS 2017-2019 the site, too.
IDENTITIES = (
    re.compile(r"(?P<patient>brats-[a-z]+-\d+)-(?P<date>\d+)", re.IGNORECASE),
    re.compile(r"(?P<patient>brats1[789]_(?P<site>[a-z]+|\d{4}|tcia\d+)_\w+?)_(?P<date>\d+)", re.IGNORECASE),
    re.compile(r"(?P<patient>upenn-gbm-\d+)_(?P<date>\d\d)", re.IGNORECASE),  # 11 before surgery, 21 after
    re.compile(
        rf"(?P<patient>.+?)[-_. ](?P<date>{_DATE})", re.IGNORECASE
    ),  # ACDC's patient001_frame01, BIDS, own names
)


def identity(text: str) -> re.Match[str] | None:
    """The groups `patient`, `date` and perhaps `site` of a name that tells them; None for one that does not."""
    return next((match for pattern in IDENTITIES if (match := pattern.fullmatch(text))), None)


def numbered_visits(folders: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Which of the folders, given as their parts, are visits of the patient above them though they bear no date.

    `scan1` or `MR2` is one unless the folders above hold many. Mere numbers are where there are more folders above
    than numbers: three visits of twelve patients, not twelve patients of three hospitals.
    """
    within: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for parts in folders:
        if len(parts) > 1 and _NUMBERED.fullmatch(parts[-1]) and not DATE.fullmatch(parts[-1]):
            within[parts[:-1]].add(parts[-1])
    few = sum(map(len, within.values())) <= MOST_VISITS * len(within)
    more_above = len(within) > len(set().union(*within.values()))
    return {
        (*above, name)
        for above, names in within.items()
        for name in names
        if more_above or (few and (match := _NUMBERED.fullmatch(name)) and match["word"])
    }
