"""Synthetic patients: anatomy, tumour growth, MR physics and scanners. Everything from one seed."""

from twinseg.phantom.cohort import HEALTHY, Patient, Visit, make_patient, write_cohort, write_patient
from twinseg.phantom.scanner import SEQUENCES, Scanner
from twinseg.phantom.tumour import KINDS

__all__ = [
    "HEALTHY",
    "KINDS",
    "SEQUENCES",
    "Patient",
    "Scanner",
    "Visit",
    "make_patient",
    "write_cohort",
    "write_patient",
]
