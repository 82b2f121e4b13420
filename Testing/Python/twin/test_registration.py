"""Registration of synthetic heads and of real ones: found where they were put, refused where they are another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from twinseg.errors import Cancelled, InputError
from twinseg.phantom import make_patient
from twinseg.phantom.cohort import Patient
from twinseg.phantom.scanner import Scanner
from twinseg.twin.registration import AGREEMENT, register
from twinseg.volumes import Volume, read_image

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "progression"


@pytest.fixture(scope="module")
def heads() -> list[Patient]:
    """Two patients with two visits each, on 40 voxels of 5 mm."""
    scanner = Scanner.for_site(0, 1)
    return [make_patient((5, n), scanner=scanner, size=40, spacing=5.0, visits=2) for n in range(2)]


def moved(
    volume: Volume, degrees: tuple[float, float, float], shift: tuple[float, float, float]
) -> tuple[Volume, np.ndarray]:
    """The same head elsewhere in the scanner, and the matrix that brings it back."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return Volume(volume.array, matrix @ volume.affine), np.linalg.inv(matrix)


def error_mm(found: np.ndarray, true: np.ndarray) -> float:
    """The largest distance of points 60 mm from the origin."""
    corners = np.array([[x, y, z, 1.0] for x in (-60, 60) for y in (-60, 60) for z in (-60, 60)]).T
    return float(np.linalg.norm(((found - true) @ np.linalg.inv(true) @ corners)[:3], axis=0).max())


@pytest.mark.parametrize(
    ("degrees", "shift"), [((0, 0, 0), (0, 0, 0)), ((10, -6, 14), (15, -10, 20)), ((-4, 3, -20), (300, 150, -400))]
)
def test_the_next_visit_is_found_wherever_the_head_lay(heads: list[Patient], degrees, shift) -> None:
    before, after = (visit.images["t1ce"] for visit in heads[0].visits)
    scan, true = moved(after, degrees, shift)

    found = register(scan, before)

    assert error_mm(found.to_baseline, true) < 1.5  # of voxels of 5 mm
    assert found.agreement > 0.6
    assert 1 < found.information < 2


def test_equal_scans_give_equal_transforms_to_the_bit(heads: list[Patient]) -> None:
    before, after = (visit.images["t1ce"] for visit in heads[0].visits)

    np.testing.assert_array_equal(register(after, before).to_baseline, register(after, before).to_baseline)


def test_it_tells_its_stages_and_how_far_it_is(heads: list[Patient]) -> None:
    before, after = (visit.images["t1ce"] for visit in heads[0].visits)
    told: list[tuple[float, str]] = []

    register(after, before, report=lambda *said: told.append(said))

    shares, stages = [done for done, _ in told], list(dict.fromkeys(stage for _, stage in told))
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] < 1
    assert len(stages) == 4
    assert all(part in said for part, said in zip(("preparing", "rigid", "affine", "comparing"), stages, strict=True))
    assert len({done for done, stage in told if "rigid" in stage}) > 10  # a step of the optimiser at a time


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize(("stage", "step"), [("preparing", 1), ("rigid", 5), ("affine", 5), ("comparing", 1)])
def test_it_can_be_stopped_in_every_stage(
    heads: list[Patient], stage: str, step: int, raises: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    before, after = (visit.images["t1ce"] for visit in heads[0].visits)
    told: list[str] = []

    def stop(_done: float, said: str) -> bool:
        told.append(said)
        if sum(stage in one for one in told) < step:
            return False
        if raises:
            raise Cancelled("by the user")
        return True

    with pytest.raises(Cancelled, match="by the user" if raises else "nothing was changed"):
        register(after, before, report=stop)

    assert sum(stage in one for one in told) == step  # then nobody was asked again
    assert capfd.readouterr().err == ""  # SimpleITK prints what a command raises
    register(after, before)  # and the next one goes well


def test_a_scan_of_another_grid_and_orientation_is_found(heads: list[Patient]) -> None:
    before, after = (visit.images["t1ce"] for visit in heads[0].visits)
    turned = np.ascontiguousarray(after.array.transpose(2, 0, 1)[::-1, :, ::2])
    corner = np.array([[0, 1, 0, 0], [0, 0, 2, 0], [-1, 0, 0, after.shape[2] - 1], [0, 0, 0, 1.0]])

    found = register(Volume(turned, after.affine @ corner), before)

    assert error_mm(found.to_baseline, np.eye(4)) < 2


def test_another_patients_scan_is_refused(heads: list[Patient]) -> None:
    with pytest.raises(InputError, match=r"day 60: it does not match the baseline .* another patient's") as raised:
        register(heads[1].visits[1].images["t1ce"], heads[0].images["t1ce"], name="day 60")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("title", "flips"),
    [("upside down", (2,)), ("on the face", (1, 2)), ("back to front", (1,))],
)
def test_a_scan_whose_header_lies_is_refused(heads: list[Patient], title: str, flips: tuple[int, ...]) -> None:
    before, after = (visit.images["t1ce"] for visit in heads[0].visits)

    with pytest.raises(InputError, match="upside down"):
        register(Volume(np.flip(after.array, flips).copy(), after.affine), before)


def nearly_symmetric(scan: Volume) -> Volume:
    """The scan with a part of its own mirror image, as brains are more symmetric than the phantom."""
    return Volume(scan.array + 0.6 * np.flip(scan.array, 0), scan.affine)


def test_left_and_right_exchanged_is_refused_even_where_it_matches_well_enough(heads: list[Patient]) -> None:
    before, after = (nearly_symmetric(visit.images["t1ce"]) for visit in heads[0].visits)
    mirrored = Volume(np.flip(after.array, 0).copy(), after.affine)

    with pytest.raises(InputError, match=r"day 60: left and right seem exchanged .* check the orientation") as raised:
        register(moved(mirrored, (4, -3, 5), (10, 5, 0))[0], before, name="day 60")

    mirrored_agreement = float(str(raised.value).split("agreement ")[1][:4])
    assert mirrored_agreement > AGREEMENT  # which alone would let it pass
    assert register(after, before).agreement > mirrored_agreement


def test_what_is_no_head_is_refused(heads: list[Patient]) -> None:
    noise = np.random.default_rng(0).normal(100, 20, (40, 40, 40)).astype(np.float32)
    speck = np.zeros((40, 40, 40), np.float32)
    speck[20:23, 20:23, 20:23] = 100
    for array in (noise, speck):
        with pytest.raises(InputError, match="does not match"):
            register(Volume(array, heads[0].images["t1ce"].affine), heads[0].images["t1ce"])


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="shared/data/progression is not there")
def test_real_patients_match_themselves_and_nobody_else() -> None:
    patients = sorted(path for path in REAL.iterdir() if path.is_dir())
    scans = [[read_image(visit / "t1ce.nii.gz") for visit in sorted(patient.iterdir())] for patient in patients]

    for number, (before, after) in enumerate(scans):
        assert register(after, before).agreement > AGREEMENT + 0.1
        across = int(np.argmax(np.abs(after.affine[0, :3])))
        with pytest.raises(InputError, match="left and right"):
            register(Volume(np.flip(after.array, across).copy(), after.affine), before)
        with pytest.raises(InputError):
            register(scans[(number + 1) % len(scans)][1], before)
