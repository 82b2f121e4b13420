"""Training by synthesis: what a sample of a grown head must hold, whatever was drawn for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from twinseg.errors import InputError
from twinseg.phantom.anatomy import Tissue
from twinseg.phantom.contrast import draw_contrast, physical_contrast
from twinseg.phantom.heads import GrownHead, grow_heads
from twinseg.phantom.lesions import LESION_KINDS, PatchState, distance_from, draw_lesion, push_aside
from twinseg.phantom.random_fields import Patch, affine_positions
from twinseg.phantom.scanner import SEQUENCES
from twinseg.phantom.synthesis import GROWN, NORMAL, Mixture, Sample, Synthesizer, normalized
from twinseg.preprocessing import normalize
from twinseg.tasks import load_task

SHAPE = (80, 96, 80)
FLAIR = SEQUENCES.index("flair")
CLEAR = Mixture(random_contrast=0.0, skull=0.0, poor_strip=0.0, aged=0.0, flow=0.0, cut=0.0, complete=1.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heads")


@pytest.fixture(scope="module")
def head(folder: Path) -> GrownHead:
    return grow_heads(1, 5, folder=folder)[0]


@pytest.fixture(scope="module")
def samples(head: GrownHead) -> list[Sample]:
    """Two dozen samples of the whole mixture."""
    synthesizer = Synthesizer(SHAPE, 2.0)
    return [synthesizer.sample(head, (3, number)) for number in range(24)]


def test_the_same_seed_gives_the_same_sample_and_another_seed_another(head: GrownHead) -> None:
    synthesizer = Synthesizer(SHAPE, 2.0)
    first, again, other = (synthesizer.sample(head, seed) for seed in ((1, 2), (1, 2), (1, 3)))

    torch.testing.assert_close(first.image, again.image, rtol=0, atol=0)
    torch.testing.assert_close(first.labels, again.labels, rtol=0, atol=0)
    assert first.kind == again.kind
    assert not torch.equal(first.labels, other.labels)


def test_every_sample_is_finite_and_in_range(samples: list[Sample]) -> None:
    for sample in samples:
        assert sample.image.shape == (4, *SHAPE)
        assert sample.labels.shape == SHAPE
        assert sample.labels.dtype == torch.uint8
        assert bool(sample.image.isfinite().all())
        assert float(sample.image.abs().max()) <= 6.0
        assert int(sample.labels.max()) <= 3


def test_a_missing_sequence_is_zero_and_a_present_one_is_not(samples: list[Sample]) -> None:
    for sample in samples:
        assert any(sample.present)
        assert [bool(image.any()) for image in sample.image] == list(sample.present)
    counts = {sum(sample.present) for sample in samples}
    assert 4 in counts
    assert len(counts) > 2


def test_the_mixture_holds_grown_painted_and_normal_heads(samples: list[Sample]) -> None:
    kinds = {sample.kind for sample in samples}
    assert GROWN in kinds
    assert NORMAL in kinds
    assert len(kinds & set(LESION_KINDS)) >= 4


def test_a_normal_head_has_no_label_whatever_else_shines(head: GrownHead) -> None:
    synthesizer = Synthesizer(SHAPE, 2.0, mixture=Mixture(aged=1.0, flow=1.0))
    for number in range(4):
        assert not synthesizer.sample(head, (4, number), NORMAL).labels.any()


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_each_kind_of_lesion_is_painted_with_its_labels(head: GrownHead, kind: str) -> None:
    synthesizer = Synthesizer(SHAPE, 2.0, mixture=CLEAR)
    found = [set(synthesizer.sample(head, (6, n), kind).labels.unique().tolist()) - {0} for n in range(4)]

    seen = set().union(*found)
    assert seen, "never painted"
    expected = {"infiltrative": {2}, "ring": {1, 2, 3}, "solid": {2, 3}, "cavity": {2}}.get(kind, {1, 2})
    assert expected <= seen
    if kind == "infiltrative":
        assert seen == {2}


@pytest.mark.parametrize("kind", [GROWN, "infiltrative", "mass"])
def test_labels_lie_where_the_image_changes(head: GrownHead, kind: str) -> None:
    """On FLAIR the tumour differs from the brain around it, and much less so when the labels are moved by 2 cm."""
    synthesizer = Synthesizer(SHAPE, 2.0, mixture=CLEAR)
    contrasts, moved = [], []
    for number in range(8):
        sample = synthesizer.sample(head, (8, number), kind)
        tumour = sample.labels > 0
        if tumour.sum() < 200:
            continue
        brain = sample.image[FLAIR] > -2.5
        for mask, into in ((tumour, contrasts), (tumour.roll((10, -10), (0, 1)), moved)):
            around = _dilated(mask, 4) & ~_dilated(mask, 1) & brain
            inside = mask & brain
            into.append(float(sample.image[FLAIR][inside].median() - sample.image[FLAIR][around].median()))
    assert len(contrasts) >= 4
    assert np.median(contrasts) > 0.5
    assert np.median(contrasts) > 2 * abs(np.nanmedian(moved))


def _dilated(mask: torch.Tensor, voxels: int) -> torch.Tensor:
    return torch.nn.functional.max_pool3d(mask.float()[None], 2 * voxels + 1, 1, voxels)[0] > 0


def test_the_enhancing_rim_shines_after_the_agent_and_not_before(head: GrownHead) -> None:
    synthesizer = Synthesizer(SHAPE, 2.0, mixture=CLEAR)
    gains = []
    for number in range(8):
        sample = synthesizer.sample(head, (9, number), "ring")
        rim, brain = sample.labels == 3, (sample.labels == 0) & (sample.image[0] > 0)
        if rim.sum() > 50:
            before, after = (float(sample.image[n][rim].median() - sample.image[n][brain].median()) for n in (0, 1))
            gains.append(after - before)
    assert np.median(gains) > 1.0


def test_the_same_head_has_another_shape_each_time(head: GrownHead) -> None:
    synthesizer = Synthesizer(SHAPE, 2.0, mixture=CLEAR)
    first, second = (synthesizer.sample(head, (2, n), NORMAL).image[FLAIR] > -1.5 for n in range(2))
    dice = 2 * float((first & second).sum()) / float(first.sum() + second.sum())
    assert 0.5 < dice < 0.97


def test_a_lesion_pushes_tissue_outwards_and_leaves_the_far_side_alone() -> None:
    patch = Patch((40, 40, 40), 2.0, CPU)
    plan = draw_lesion(np.random.default_rng(1), "mass")
    centre = np.zeros(3)
    before = affine_positions(patch, np.eye(3), centre)
    after = before.clone()
    squared = distance_from(patch, plan, centre)

    push_aside(after, squared, centre, 0.25)

    near, far = (squared > 0.5) & (squared < 2), squared > 9
    assert bool((after.norm(dim=0) <= before.norm(dim=0) + 1e-4).all()), "what is read comes from further in"
    assert float((before - after).norm(dim=0)[near].mean()) > 0.1 * float(before.norm(dim=0)[near].mean())
    if far.any():
        assert float((before - after).norm(dim=0)[far].max()) < 1.0


def test_normalisation_is_that_of_inference() -> None:
    rng = np.random.default_rng(0)
    image = np.abs(rng.normal(400, 150, size=(60, 60, 60))).astype(np.float32)
    image[:20] = 0

    expected = normalize(image, load_task("brats-glioma"))

    np.testing.assert_allclose(normalized(torch.from_numpy(image)).numpy(), expected, atol=0.02)


def test_contrasts_null_fluid_on_flair_and_the_agent_shows_after_injection_only() -> None:
    for seed in range(5):
        tables = physical_contrast(np.random.default_rng(seed), 3)
        flair = tables.dry[FLAIR]
        assert flair[Tissue.VENTRICLE].max() < 0.5 * flair[Tissue.WHITE].min()
        assert tables.wet[FLAIR, Tissue.WHITE].min() > 0
        assert tables.uptake[SEQUENCES.index("t1ce"), Tissue.ENHANCING].min() > 0.05
        assert np.abs(tables.uptake[[0, 2, 3]]).max() < 1e-5


@pytest.mark.parametrize("seed", range(5))
def test_contrasts_of_every_kind_are_finite_and_bright_enough(seed: int) -> None:
    tables = draw_contrast(np.random.default_rng(seed), 4, 0.5)

    for part in (tables.dry, tables.wet, tables.uptake):
        assert part.shape == (4, len(Tissue), 4)
        assert part.dtype == np.float32
        assert np.isfinite(part).all()
    assert tables.dry.min() >= 0
    brain = tables.dry[:, [Tissue.WHITE, Tissue.GREY]].mean(axis=(1, 2))
    np.testing.assert_allclose(brain, 1.0, atol=0.15)


def test_heads_are_read_again_and_a_damaged_one_is_named(head: GrownHead, folder: Path, tmp_path: Path) -> None:
    (path,) = folder.iterdir()
    written = path.stat().st_mtime_ns

    (again,) = grow_heads(1, 5, folder=folder)

    assert path.stat().st_mtime_ns == written
    for name in ("healthy", "tissues", "labels", "infiltration", "enhancement"):
        assert torch.equal(getattr(again, name), getattr(head, name))
    damaged = tmp_path / path.name
    damaged.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=f"{path.name}.*remove it"):
        grow_heads(1, 5, folder=tmp_path)


def test_a_head_without_a_tumour_can_be_given_one(head: GrownHead) -> None:
    bare = GrownHead(head.healthy, head.healthy, *(torch.zeros_like(head.labels) for _ in range(3)))

    sample = Synthesizer(SHAPE, 2.0, mixture=CLEAR).sample(bare, (1, 1), "mass")

    assert bool(sample.labels.any())
    assert not Synthesizer(SHAPE, 2.0, mixture=CLEAR).sample(bare, (1, 1), GROWN).labels.any()


def test_a_patch_state_tells_its_tissues() -> None:
    tissues = torch.tensor([[[int(Tissue.WHITE), int(Tissue.CSF)]]])
    zero = torch.zeros(tissues.shape)

    state = PatchState(tissues, zero.to(torch.uint8), zero, zero)

    assert state.is_one_of((Tissue.WHITE, Tissue.GREY)).tolist() == [[[True, False]]]
