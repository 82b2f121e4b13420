"""Which volume is which sequence: by its name, by its description, and together with its siblings."""

from __future__ import annotations

import numpy as np
import pytest

from twinseg.tasks import load_task

NAMES = {
    "BraTS-GLI-00000-000-t1c": "t1ce",
    "BraTS-GLI-00000-000-t1n": "t1",
    "BraTS-GLI-00000-000-t2f": "flair",
    "6: AX T1 POST GD": "t1ce",
    "t1_mpr_ns_sag_pat2_gd": "t1ce",
    "3D T1 TFE +C": "t1ce",
    "T1w+C": "t1ce",
    "T1c+": "t1ce",
    "T1wKM": "t1ce",
    "ct1": "t1ce",
    "T1 pre contrast": "t1",
    "t1 mprage without contrast": "t1",
    "AX T1 W/O": "t1",
    "T1 FLAIR sag": "t1",
    "T1 ax C-spine": "t1",
    "AX T2 FLAIR FS": "flair",
    "Ax FLAIR post": "flair",
    "t2_tirm_tra_dark-fluid": "flair",
    "t2_tse_tra": "t2",
    "ep2d_diff ADC T2": None,
    "T1 localizer": None,
    "MRHead": None,
}


@pytest.fixture
def glioma():
    return load_task("brats-glioma")


def image(size=6):
    return np.arange(size**3, dtype=np.float32).reshape(size, size, size)


@pytest.mark.parametrize(("name", "sequence"), NAMES.items())
def test_names_as_hospitals_give_them(slicer_host, glioma, name, sequence):
    from TwinSegSlicerLib.Sequences import matchSequence

    found = matchSequence(name, glioma)

    assert (found[0] if found else None) == sequence


def test_a_whole_case_is_found(slicer_host, glioma, add_volume):
    from TwinSegSlicerLib.Sequences import findSequences

    nodes = {s: add_volume(image(), name=f"P1-{s}") for s in ("t1n", "t1c", "t2w", "t2f")}

    found = findSequences(glioma)

    assert found == {"t1": nodes["t1n"], "t1ce": nodes["t1c"], "t2": nodes["t2w"], "flair": nodes["t2f"]}


def test_of_two_patients_the_one_with_more_sequences_is_taken_and_none_of_the_other(slicer_host, glioma, add_volume):
    from TwinSegSlicerLib.Sequences import findSequences

    add_volume(image(), name="Ada_t1ce")
    ben = [add_volume(image(), name=f"Ben_{s}") for s in ("flair", "t1")]

    assert list(findSequences(glioma).values()) == ben[::-1]


def test_a_study_of_the_subject_hierarchy_holds_together_what_names_do_not(slicer_host, glioma, add_volume):
    import slicer

    from TwinSegSlicerLib.Sequences import findSequences

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Ada")
    nodes = {}
    for year, names in {"2019": ("4: FLAIR", "7: T1 post"), "2020": ("3: FLAIR", "9: T1 post", "1: T2 tse")}.items():
        study = hierarchy.CreateStudyItem(patient, year)
        for name in names:
            nodes[year, name] = add_volume(image(), name=name)
            hierarchy.SetItemParent(hierarchy.GetItemByDataNode(nodes[year, name]), study)

    found = findSequences(glioma)

    assert found == {
        "t1ce": nodes["2020", "9: T1 post"],
        "t2": nodes["2020", "1: T2 tse"],
        "flair": nodes["2020", "3: FLAIR"],
    }


def test_of_two_that_fit_the_one_with_more_voxels_is_taken(slicer_host, glioma, add_volume):
    from TwinSegSlicerLib.Sequences import findSequences

    add_volume(image(5), name="P1_flair")
    larger = add_volume(image(9), name="P1_FLAIR")

    assert findSequences(glioma) == {"flair": larger}


def test_the_only_volume_is_the_only_sequence(slicer_host, add_volume):
    from TwinSegSlicerLib.Sequences import findSequences

    node = add_volume(image(), name="abdomen venous")

    assert findSequences(load_task("lits-liver")) == {"ct": node}


def test_results_label_maps_and_empty_volumes_are_no_inputs(slicer_host, glioma, add_volume, add_result):
    import slicer

    from TwinSegSlicerLib.Sequences import findSequences

    image_node = add_result().GetNodeReference("TwinSegImage_flair")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "t1ce")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "t2")
    add_volume(np.zeros((5, 5, 5)), name="t1")

    assert findSequences(glioma) == {"flair": image_node}


def test_what_it_costs_that_a_sequence_is_missing_is_said(slicer_host, glioma):
    from TwinSegSlicerLib.Sequences import missingNote

    assert missingNote(glioma, ["t1", "t1ce", "t2", "flair"]) == ""
    assert missingNote(glioma, []) == ""
    note = missingNote(glioma, ["t1", "t2", "flair"])
    assert note.startswith("Missing: T1 with contrast.")
    assert "enhancing part" in note
