"""Signal equations, scanners and what they make of a tumour."""

from __future__ import annotations

import numpy as np
import pytest

from twinseg.phantom import SEQUENCES, Scanner, make_patient
from twinseg.phantom.anatomy import Tissue
from twinseg.phantom.fields import Grid
from twinseg.phantom.physics import RELAXATION, Protocol, TissueMaps, signal


def maps_of(kind: Tissue, field_strength: float = 3.0, agent: float = 0.0) -> TissueMaps:
    """One voxel of a tissue."""
    column = 0 if field_strength < 2 else 1
    row = RELAXATION[kind]
    values = (row[column], row[2 + column], row[4], agent)
    t1, t2, density, concentration = (np.full((1, 1, 1), value, np.float32) for value in values)
    return TissueMaps(t1, t2, density, concentration)


def level(kind: Tissue, protocol: Protocol, agent: float = 0.0) -> float:
    return signal(maps_of(kind, agent=agent), protocol, 3.0, 0.1).item()


T1 = Protocol("spin echo", 600, 12)
T1CE = Protocol("spin echo", 600, 12, contrast_agent=True)
T2 = Protocol("spin echo", 5000, 100)
FLAIR = Protocol("inversion recovery", 9000, 120, 2500)


def test_the_spin_echo_by_hand() -> None:
    expected = 0.70 * (1 - np.exp(-600 / 832)) * np.exp(-12 / 78)
    assert level(Tissue.WHITE, T1) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "protocol",
    [T1, Protocol("gradient echo", 25, 4, flip=28), Protocol("prepared gradient echo", 2000, 3, 900)],
)
def test_t1_shows_white_matter_brighter_than_grey_and_csf_darkest(protocol: Protocol) -> None:
    assert level(Tissue.WHITE, protocol) > level(Tissue.GREY, protocol) > level(Tissue.CSF, protocol)


def test_t2_shows_csf_brightest_and_flair_nulls_it() -> None:
    assert level(Tissue.CSF, T2) > level(Tissue.GREY, T2) > level(Tissue.WHITE, T2)
    assert level(Tissue.CSF, FLAIR) < 0.3 * level(Tissue.WHITE, FLAIR)
    assert level(Tissue.NON_ENHANCING, FLAIR) > 1.3 * level(Tissue.GREY, FLAIR)


def test_the_contrast_agent_brightens_what_takes_it_up_and_only_after_injection() -> None:
    assert level(Tissue.ENHANCING, T1CE, agent=0.5) > 1.4 * level(Tissue.ENHANCING, T1CE)
    assert level(Tissue.ENHANCING, T1, agent=0.5) == level(Tissue.ENHANCING, T1)


def test_an_unknown_equation_is_refused() -> None:
    with pytest.raises(ValueError, match="echo planar"):
        level(Tissue.WHITE, Protocol("echo planar", 1, 1))


def test_a_site_keeps_its_scanner_and_sites_differ() -> None:
    assert Scanner.for_site(0, 5) == Scanner.for_site(0, 5)
    first, second = Scanner.for_site(0, 5), Scanner.for_site(1, 5)
    assert first.field_strength != second.field_strength
    assert first.protocols != second.protocols
    assert max(first.resolution["flair"]) < max(second.resolution["flair"])


def test_noise_in_air_is_rayleigh_distributed() -> None:
    grid = Grid((32, 32, 32), (1.0, 1.0, 1.0))
    base = Scanner.for_site(0, 0, skull=True)
    scanner = Scanner(**{**vars(base), "noise": 0.05, "scale": dict.fromkeys(SEQUENCES, 1e4), "bias": 0.0})
    ideal = np.zeros(grid.shape, np.float32)
    ideal[:4] = 1.0
    brain = ideal > 0
    fine = Scanner(**{**vars(scanner), "resolution": dict.fromkeys(SEQUENCES, (1.0, 1.0, 1.0))})

    image = fine.acquire(np.random.default_rng(0), ideal, "t1", grid, brain) / 1e4

    assert image[12:].mean() == pytest.approx(0.05 * np.sqrt(np.pi / 2), rel=0.02)


@pytest.mark.parametrize("contrast", ["physical", "random"])
def test_the_tumour_shows_as_it_should(contrast: str) -> None:
    """Over several patients: oedema bright on FLAIR; the enhancing rim brighter after contrast agent than before."""
    oedema, rim = [], []
    for seed in range(6):
        scanner = Scanner.random((seed, 1), skull=False)
        patient = make_patient(seed, scanner=scanner, size=64, spacing=3.0, contrast=contrast, kind="ring")
        labels, images = patient.labels.array, {name: volume.array for name, volume in patient.images.items()}
        brain = (images["t1"] > 0) & (labels == 0)
        oedema.append(np.median(images["flair"][labels == 2]) / np.median(images["flair"][brain]))
        before, after = (
            np.median(images[name][labels == 3]) / np.median(images[name][brain]) for name in ("t1", "t1ce")
        )
        rim.append(after / before)
    assert np.mean(np.array(oedema) > 1.05) > 0.8
    assert np.mean(np.array(rim) > 1.2) > 0.8


def test_skull_stripping_blanks_all_but_the_brain_and_missing_sequences_are_missing() -> None:
    bare = make_patient(3, scanner=Scanner.for_site(0, missing=("t2",)), size=64, spacing=3.0)
    whole = make_patient(3, scanner=Scanner.for_site(0, skull=True), size=64, spacing=3.0)

    assert set(bare.images) == {"t1", "t1ce", "flair"}
    inside = bare.images["t1"].array > 0
    assert 900 < inside.sum() * 0.027 < 2200
    assert np.all(bare.labels.array[~inside] == 0)
    assert (whole.images["t1"].array > 0).sum() > 1.4 * inside.sum()
