"""A synthetic patient in Slicer's Sample Data module: made here when it is first asked for, not downloaded."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qt
import slicer
from slicer.i18n import tr as _

from twinseg.home import data_folder

if TYPE_CHECKING:
    from twinseg.phantom import Patient

CATEGORY = "TwinSeg"
SAMPLE_NAME = "TwinSeg synthetic glioma"
NODE_PREFIX = "SyntheticGlioma"
THUMBNAIL = Path(__file__).resolve().parents[1] / "Resources/Icons/SyntheticGlioma.png"
SEED, SIZE, SPACING = 14, (128, 160, 120), 1.4  # voxels along right, anterior, superior; mm


def registerSampleData() -> None:
    """Add the sample to the Sample Data module; called again (the module was reloaded), it takes its own place."""
    from SampleData import SampleDataLogic

    sources = getattr(slicer.modules, "sampleDataSources", {}).get(CATEGORY, [])
    sources[:] = [source for source in sources if source.sampleName != SAMPLE_NAME]
    SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=SAMPLE_NAME,
        thumbnailFileName=str(THUMBNAIL),
        uris=[],
        fileNames=[],
        nodeNames=[],
        customDownloader=lambda source: loadSample(),
    )


def loadSample() -> list[Any]:
    """Volume nodes t1, t1ce, t2 and flair of a synthetic patient, in a study of their own, FLAIR shown.

    The images are made the first time, which takes some seconds, and kept in the data folder. Raises InputError where
    they cannot be written.
    """
    progress = slicer.util.createProgressDialog(labelText=_("Making a synthetic patient…"), maximum=0, value=0)
    progress.setCancelButton(None)
    progress.windowModality = qt.Qt.ApplicationModal
    try:
        with ThreadPoolExecutor(1) as thread:
            made = thread.submit(sampleFiles)
            while wait([made], timeout=0.02).not_done:
                slicer.app.processEvents()  # the window lives on; the dialog keeps it from being used meanwhile
        files = made.result()
    finally:
        progress.close()
        progress.deleteLater()
    name = slicer.mrmlScene.GenerateUniqueName(NODE_PREFIX)
    nodes = {sequence: _loadVolume(path, f"{name}_{sequence}") for sequence, path in files.items()}
    _putIntoStudy(name, list(nodes.values()))
    slicer.util.setSliceViewerLayers(background=nodes["flair"], fit=True)
    return list(nodes.values())


def sampleFiles() -> dict[str, Path]:
    """The sample's image files by sequence, made where they are not there yet: all of them, or none."""
    from twinseg.phantom import SEQUENCES

    folder = data_folder() / "samples" / "synthetic-glioma"
    files = {sequence: folder / f"{sequence}.nrrd" for sequence in SEQUENCES}
    if not all(file.is_file() for file in files.values()):
        _makeSample(folder)
    return files


def makePatient() -> Patient:
    """The synthetic patient: images by sequence, and the label map that is the truth."""
    from twinseg.phantom import Scanner, make_patient

    return make_patient(SEED, scanner=Scanner.for_site(0), size=SIZE, spacing=SPACING, kind="ring")


def _makeSample(folder: Path) -> None:
    """Write the images as NRRD, which Slicer reads and writes without any package that has to be installed."""
    from twinseg.errors import InputError
    from twinseg.volumes import Volume, write_volume

    patient = makePatient()
    temporary = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a session that was ended
        temporary.mkdir(parents=True)
        for sequence, image in patient.images.items():
            write_volume(temporary / f"{sequence}.nrrd", Volume(image.array.round().astype("int16"), image.affine))
        shutil.rmtree(folder, ignore_errors=True)  # files are missing in it
        temporary.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); free space or set TWINSEG_HOME") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _loadVolume(path: Path, name: str) -> Any:
    return slicer.util.loadVolume(str(path), {"name": name, "show": False})


def _putIntoStudy(name: str, nodes: list[Any]) -> None:
    """As a DICOM study would lie in the subject hierarchy: patient, study, images."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), name)
    study = hierarchy.CreateStudyItem(patient, _("Synthetic MRI"))
    for node in nodes:
        hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), study)
