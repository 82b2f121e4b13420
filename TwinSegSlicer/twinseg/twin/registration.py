"""A new scan laid on the baseline: rigid, then affine, by mutual information; and whether it is the same head at all.

Mutual information (Mattes et al., IEEE Trans. Med. Imaging 22 (2003) 120-128; SimpleITK's implementation) over three
resolutions, on random samples of a fixed seed and on one thread: the same scans give the same transform to the bit.

**Agreement**, the figure of quality: the median over the head of the local correlation of both images, weighted by a
Gaussian of 3 mm (Cachier et al., Comput. Vis. Image Underst. 89 (2003) 272-298). It sees folds and vessels, which no
two heads share, and as a median neither a tumour that changed nor a bias field. On seven real patients with two dates
(slices of 6.5 mm) it was 0.55 to 0.76 for the same patient, and for another one 0.04 to 0.24, which is chance.

**Left and right**: brains are nearly symmetric, so that a mirrored scan of the same patient reached 0.21 to 0.49. So
the registered scan is mirrored and laid on the baseline once more, coarsely (1 to 2 s), and refused if it agrees better
then by `MIRRORED`. On the same patients it agreed less by 0.23 or more if it was right, and better by 0.09 or more if
it was mirrored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinseg.errors import Cancelled, InputError
from twinseg.itk_files import LPS
from twinseg.volumes import Volume

if TYPE_CHECKING:
    from twinseg.inference import Report

GRID_MM = 2.0  # both scans are brought to voxels of about this size first: one core does it in seconds
SAMPLES = 40_000
SEED = 42
RIGID, AFFINE = "registering to the baseline, rigid", "registering to the baseline, affine"
COMPARING = "comparing the registered scan with the baseline"
SHRINKS, MOST_STEPS = (4, 2, 1), 100  # the resolutions, and the optimiser's steps at each
COARSE = SHRINKS[:2]  # enough to tell left from right, at half of the time
AGREEMENT = 0.4  # below is another head, or the wrong way round
MIRRORED = 0.05  # a scan that agrees better by this when it is mirrored has left and right exchanged
GAIN = 0.01  # what the affine transform must gain to be preferred, as a rigid one cannot bend the head
STRETCH = 1.15  # no head grows or shrinks by more than this along any axis; a scanner's gradients err by a few per cent


Pair = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Registration:
    """to_baseline: 4x4, points of the new scan (RAS mm) to the baseline's; kind: rigid or affine; agreement: see the
    module; information: normalised mutual information of the heads, 1 (nothing in common) to 2 (Studholme 1999)."""

    to_baseline: np.ndarray
    kind: str
    agreement: float
    information: float

    def to_json(self) -> dict[str, Any]:
        """What a time point keeps of it."""
        return {
            "kind": self.kind,
            "agreement": round(self.agreement, 4),
            "information": round(self.information, 4),
            "limit": AGREEMENT,
        }


def register(
    scan: Volume, baseline: Volume, *, name: str = "the scan", report: Report = lambda done, stage: None
) -> Registration:
    """Lay a scan on the baseline; both show the same sequence, wherever their headers place them.

    `report` is told where the work is at each step of the optimiser, and may stop it. Raises InputError where the scans
    do not agree: another patient's scan, one upside down or mirrored, or no head; Cancelled when `report` asks for it.
    """

    def tell(done: float, stage: str) -> None:
        if report(done, stage):
            raise Cancelled("stopped; nothing was changed")

    itk = _simple_itk()
    tell(0.0, "preparing both scans for the registration")
    fixed, moving = _coarse(baseline, itk), _coarse(scan, itk)
    with _one_thread(itk):
        rigid = _rigid(fixed, moving, itk, lambda done: tell(0.1 + 0.4 * done, RIGID))
        tell(0.5, AFFINE)
        affine = _affine(fixed, moving, rigid, itk, lambda done: tell(0.5 + 0.4 * done, AFFINE))
    tell(0.9, COMPARING)
    candidates = []
    for kind, transform in (("rigid", rigid), ("affine", affine)):
        matrix = _matrix(transform)
        if np.max(np.abs(np.log(np.linalg.svd(matrix[:3, :3])[1]))) <= np.log(STRETCH):
            pair, agreement = _compared(fixed, moving, transform, itk)
            to_baseline = np.linalg.inv(LPS @ matrix @ LPS)
            candidates.append(Registration(to_baseline, kind, agreement, _normalised_mutual_information(*pair)))
    best = candidates[0]
    if len(candidates) > 1 and candidates[1].agreement > best.agreement + GAIN:
        best = candidates[1]
    with _one_thread(itk):
        mirrored = _agreement_mirrored(fixed, moving, rigid, itk, lambda done: tell(0.92 + 0.07 * done, COMPARING))
    if mirrored >= max(AGREEMENT, best.agreement + MIRRORED):
        raise InputError(
            f"{name}: left and right seem exchanged against the baseline (agreement {best.agreement:.2f}, mirrored "
            f"{mirrored:.2f}); check the orientation in the headers of both files, or convert from DICOM anew"
        )
    if best.agreement < AGREEMENT:
        raise InputError(
            f"{name}: it does not match the baseline (agreement {best.agreement:.2f}, at least {AGREEMENT} is needed); "
            "is it another patient's, or upside down? Check the files"
        )
    return best


@contextmanager
def _one_thread(itk: Any) -> Iterator[None]:
    """ITK's metrics add up in the order in which their threads end, so that only one gives the same sum each time."""
    before = itk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        itk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _simple_itk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError("registration needs SimpleITK (pip install SimpleITK)") from error
    return SimpleITK


def _coarse(volume: Volume, itk: Any) -> Any:
    """The volume as ITK's image with voxels of about `GRID_MM`, averages of its own."""
    lps = LPS @ volume.affine
    spacing = np.array(volume.spacing)
    image = itk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0).astype(np.float32)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    direction, _, turned = np.linalg.svd(lps[:3, :3] / spacing)  # ITK refuses axes that are off by a rounding
    image.SetDirection((direction @ turned).ravel().tolist())
    fewer = np.clip(np.rint(GRID_MM / spacing), 1, np.maximum(np.array(volume.shape) // 16, 1)).astype(int)
    return itk.BinShrink(image, fewer.tolist())


def _rigid(fixed: Any, moving: Any, itk: Any, tell: Callable[[float], None], shrinks: tuple[int, ...] = SHRINKS) -> Any:
    """The best rigid transform, from the best of three starts: as the headers say, grid on grid, head on head."""
    starts = [itk.Euler3DTransform()]
    for way in (itk.CenteredTransformInitializerFilter.GEOMETRY, itk.CenteredTransformInitializerFilter.MOMENTS):
        centred = itk.CenteredTransformInitializer(fixed, moving, itk.Euler3DTransform(), way)
        starts.append(itk.Euler3DTransform(centred))
    starts[0].SetCenter(starts[2].GetCenter())
    values = []
    for transform in starts:
        tell(0.0)
        values.append(_value(fixed, moving, transform, itk))
    start = starts[int(np.argmin(values))]
    method = _method(fixed, itk, step_mm=2.0, shrinks=shrinks)
    method.SetInitialTransform(start, True)
    _optimise(method, fixed, moving, itk, tell)
    return start


def _affine(fixed: Any, moving: Any, rigid: Any, itk: Any, tell: Callable[[float], None]) -> Any:
    transform = itk.AffineTransform(3)
    transform.SetCenter(rigid.GetCenter())
    transform.SetMatrix(rigid.GetMatrix())
    transform.SetTranslation(rigid.GetTranslation())
    method = _method(fixed, itk, step_mm=1.0)
    method.SetInitialTransform(transform, True)
    _optimise(method, fixed, moving, itk, tell)
    return transform


def _optimise(method: Any, fixed: Any, moving: Any, itk: Any, tell: Callable[[float], None]) -> None:
    """Run a registration; `tell` hears the share that is done after each step, and may raise to end it.

    SimpleITK prints what a command raises and forgets what it was. So it is kept until the optimiser has stopped, at
    this and at each finer resolution.
    """
    raised: list[BaseException] = []

    def after_step() -> None:
        try:
            if not raised:
                tell((method.GetCurrentLevel() + method.GetOptimizerIteration() / MOST_STEPS) / len(SHRINKS))
        except BaseException as error:  # Ctrl-C, too
            raised.append(error)
        if raised:
            method.StopRegistration()

    method.AddCommand(itk.sitkIterationEvent, after_step)
    try:
        method.Execute(fixed, moving)
    finally:
        method.RemoveAllCommands()  # which hold the method that holds them
    if raised:
        raise raised[0]


def _value(fixed: Any, moving: Any, transform: Any, itk: Any) -> float:
    """Minus the mutual information; 0 where the images do not overlap."""
    method = _method(fixed, itk, step_mm=1.0)
    method.SetInitialTransform(transform)
    try:
        return float(method.MetricEvaluate(fixed, moving))
    except RuntimeError:  # all samples map outside of the moving image
        return 0.0


def _method(fixed: Any, itk: Any, step_mm: float, shrinks: tuple[int, ...] = SHRINKS) -> Any:
    method = itk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(min(SAMPLES / fixed.GetNumberOfPixels(), 1.0), SEED)
    method.SetInterpolator(itk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step_mm, minStep=0.002, numberOfIterations=MOST_STEPS, relaxationFactor=0.5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrinks)
    method.SetSmoothingSigmasPerLevel([4, 2, 0][: len(shrinks)])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    return method


def _matrix(transform: Any) -> NDArray[np.float64]:
    """4x4 of ITK's transform: points of the fixed image to the moving one's, LPS."""
    matrix = np.eye(4)
    centre = np.array(transform.GetCenter())
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return matrix


def _compared(fixed: Any, moving: Any, transform: Any, itk: Any) -> tuple[Pair, float]:
    """Both images on the grid of the fixed one, and their agreement."""
    warped = itk.Resample(moving, fixed, transform, itk.sitkLinear, 0.0)
    pair = itk.GetArrayFromImage(fixed), itk.GetArrayFromImage(warped)
    return pair, _agreement(*pair, np.array(fixed.GetSpacing())[::-1])


def _agreement_mirrored(fixed: Any, moving: Any, rigid: Any, itk: Any, tell: Callable[[float], None]) -> float:
    """The agreement of the registered image with left and right exchanged."""
    direction = np.abs(np.reshape(fixed.GetDirection(), (3, 3)))
    across = int(np.argmax(direction[0]))  # the axis of the grid that runs most from left to right
    warped = itk.Resample(moving, fixed, rigid, itk.sitkLinear, 0.0)
    mirrored = itk.Flip(warped, [axis == across for axis in range(3)], False)
    mirrored.CopyInformation(fixed)
    return _compared(fixed, mirrored, _rigid(fixed, mirrored, itk, tell, COARSE), itk)[1]


def _head(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where both images show something: a tenth of their bright voxels' intensity."""
    return (one > np.percentile(one, 99) / 10) & (other > np.percentile(other, 99) / 10)


def _agreement(one: NDArray[np.float32], other: NDArray[np.float32], spacing: NDArray[np.float64]) -> float:
    """The median of the local correlation over the head, 0 where there is too little of it."""
    from scipy import ndimage

    head = _head(one, other)
    inner = ndimage.binary_erosion(head, iterations=2)  # without the rim, where every head looks like every other
    if np.count_nonzero(inner) * np.prod(spacing) < 50_000:  # mm³; a brain has over a million
        return 0.0
    weight = head.astype(np.float32)

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        smooth: NDArray[np.float32] = ndimage.gaussian_filter(values * weight, 3.0 / spacing, truncate=3)
        return smooth / total

    total = np.maximum(ndimage.gaussian_filter(weight, 3.0 / spacing, truncate=3), 1e-6)
    one = one / one[head].std()
    other = other / other[head].std()
    one_mean, other_mean = mean(one), mean(other)
    variances = (mean(one * one) - one_mean**2, mean(other * other) - other_mean**2)
    product = np.maximum(variances[0], 1e-6) * np.maximum(variances[1], 1e-6)
    local = (mean(one * other) - one_mean * other_mean) / np.sqrt(product)
    return float(np.median(local[inner]))


def _normalised_mutual_information(one: NDArray[np.float32], other: NDArray[np.float32], bins: int = 48) -> float:
    """(H(A) + H(B)) / H(A, B) over the head (Studholme et al., Pattern Recognition 32 (1999) 71-86)."""
    head = _head(one, other)
    if not head.any():
        return 1.0
    values = [np.clip(image[head], *np.percentile(image[head], (0.5, 99.5))) for image in (one, other)]
    joint = np.histogram2d(values[0], values[1], bins=bins)[0] / head.sum()

    def entropy(share: NDArray[np.float64]) -> float:
        return float(-np.sum(share[share > 0] * np.log(share[share > 0])))

    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / max(entropy(joint), 1e-12)
