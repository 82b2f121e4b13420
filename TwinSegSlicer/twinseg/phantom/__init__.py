"""Synthetic patients: anatomy, tumour growth, MR physics and scanners. Everything from one seed."""

from twinseg.phantom.cohort import (
    HEALTHY,
    GrownPatient,
    Patient,
    Visit,
    grow_patient,
    make_patient,
    take_images,
    write_cohort,
    write_patient,
)
from twinseg.phantom.scanner import SEQUENCES, Scanner
from twinseg.phantom.tumour import KINDS

__all__ = [
    "HEALTHY",
    "KINDS",
    "SEQUENCES",
    "GrownPatient",
    "Patient",
    "Scanner",
    "Visit",
    "grow_patient",
    "make_patient",
    "take_images",
    "write_cohort",
    "write_patient",
]
