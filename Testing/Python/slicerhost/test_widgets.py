"""The widgets of Slicer and CTK that modules use."""

from __future__ import annotations

import pytest


@pytest.fixture
def ctk(slicer_host):
    import ctk

    return ctk


def test_every_class_of_the_description_can_be_made(slicer_host):
    import qt

    from SlicerHost.widget_api import known_classes

    for name, cls in known_classes(("ctk", "qMRML", "qSlicer")).items():
        needs_arguments = name in (
            "qSlicerLayoutManager",
            "qSlicerModuleSelectorToolBar",
            "qSlicerScriptedLoadableModule",
            "qSlicerScriptedLoadableModuleWidget",
            "qSlicerMainWindow",
            "qSlicerModuleManager",
        )
        if needs_arguments or issubclass(cls, qt.QHeaderView) or name == "qMRMLSliceControllerWidget":
            continue
        widget = cls()
        assert widget.metaObject().className() == name


def test_a_slider_keeps_its_value_within_its_limits(ctk):
    slider = ctk.ctkSliderWidget()
    got = []
    slider.connect("valueChanged(double)", got.append)
    slider.minimum, slider.maximum = -5, 5
    slider.value = 7
    slider.setValue(2.25)
    assert got == [5.0, 2.25]
    assert slider.value == slider.property("value") == 2.25


def test_a_range_sends_one_signal_for_both_ends(ctk):
    widget = ctk.ctkRangeWidget()
    widget.setRange(0, 10)
    got = []
    widget.connect("valuesChanged(double,double)", lambda low, high: got.append((low, high)))
    widget.setValues(2, 20)
    assert got == [(2, 10)]
    assert (widget.minimumValue, widget.maximumValue) == (2, 10)


def test_a_collapsed_button_hides_its_contents(ctk):
    import qt

    button = ctk.ctkCollapsibleButton()
    button.text = "Advanced"
    layout = qt.QFormLayout(button)
    shown, hidden = qt.QLabel("shown"), qt.QLabel("hidden")
    layout.addRow(shown)
    layout.addRow(hidden)
    hidden.hide()
    button.collapsed = True
    assert shown.isHidden()
    assert not button.checked
    button.collapsed = False
    assert not shown.isHidden()
    assert hidden.isHidden()


def test_a_path_edit_tells_its_path_and_whether_it_is_valid(ctk, tmp_path):
    edit = ctk.ctkPathLineEdit()
    edit.filters = ctk.ctkPathLineEdit.Dirs
    paths, valid = [], []
    edit.connect("currentPathChanged(QString)", paths.append)
    edit.validInputChanged.connect(valid.append)

    edit.currentPath = str(tmp_path)
    edit.currentPath = str(tmp_path / "missing")
    edit.currentPath = ""  # which is told by the other signal only

    assert paths == [str(tmp_path), str(tmp_path / "missing")]
    assert valid == [True, False]
    assert edit.currentPath == ""


def test_a_path_edit_takes_names_that_its_filters_allow(ctk):
    edit = ctk.ctkPathLineEdit()
    edit.nameFilters = ["Images (*.png *.jpg)"]
    paths = []
    edit.connect("currentPathChanged(QString)", paths.append)

    for path in ("/a/b.png", "/a/b.txt", "/a/c.jpg"):
        edit.currentPath = path

    assert paths == ["/a/b.png", "/a/c.jpg"]


def test_setting_the_path_anew_moves_the_cursor_to_its_end(ctk):
    edit = ctk.ctkPathLineEdit()
    edit.currentPath = "/data"
    line = edit.comboBox().lineEdit()
    line.cursorPosition = 1

    edit.currentPath = "/data"

    assert line.cursorPosition == 5


def test_a_path_edit_remembers_its_history(ctk):
    first, second = ctk.ctkPathLineEdit(), ctk.ctkPathLineEdit()
    first.settingKey = "HostTest/paths"
    first.currentPath = "/a"
    first.addCurrentPathToHistory()
    second.settingKey = "HostTest/paths"
    assert second.currentPath == "/a"


def test_checkable_combo_box(ctk):
    import qt

    box = ctk.ctkCheckableComboBox()
    box.addItems(["T1", "T2"])
    got = []
    box.connect("checkedIndexesChanged()", lambda: got.append(len(box.checkedIndexes())))
    box.setCheckState(box.model().index(1, 0), qt.Qt.Checked)
    assert got == [1]
    assert [index.row() for index in box.checkedIndexes()] == [1]


def add(class_name, name):
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass(class_name, name)


@pytest.fixture
def selector(slicer_host):
    import slicer

    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.setMRMLScene(slicer.mrmlScene)
    yield box
    box.setMRMLScene(None)


def test_the_first_node_is_chosen_unless_none_is_allowed(selector):
    got = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", got.append)
    selector.addEnabled = selector.removeEnabled = False
    first = add("vtkMRMLScalarVolumeNode", "first")
    add("vtkMRMLScalarVolumeNode", "second")
    assert got == [first]
    selector.noneEnabled = True
    selector.setCurrentNode(None)
    assert selector.currentNode() is None
    assert selector.currentNodeID == ""


def test_a_node_that_comes_later_is_not_chosen_where_one_can_be_created(selector):
    add("vtkMRMLScalarVolumeNode", "later")
    assert selector.currentNode() is None
    selector.setCurrentNodeIndex(0)
    assert selector.currentNode().GetName() == "later"


def test_a_node_chosen_before_the_scene_is_set(slicer_host):
    import slicer

    first, second = add("vtkMRMLModelNode", "first"), add("vtkMRMLModelNode", "second")
    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLModelNode"]
    box.setCurrentNode(second)
    box.setMRMLScene(slicer.mrmlScene)
    assert box.currentNode() is second
    slicer.mrmlScene.RemoveNode(second)
    assert box.currentNode() is first
    box.setMRMLScene(None)


def test_the_list_is_filtered_by_class_attribute_and_visibility(selector):
    volume = add("vtkMRMLScalarVolumeNode", "MR")
    label_map = add("vtkMRMLLabelMapVolumeNode", "labels")
    add("vtkMRMLModelNode", "model")
    hidden = add("vtkMRMLScalarVolumeNode", "hidden")
    hidden.SetHideFromEditors(True)
    selector.setMRMLScene(selector.mrmlScene())
    assert selector.nodes() == [volume, label_map]
    selector.showChildNodeTypes = False
    assert selector.nodes() == [volume]
    selector.addAttribute("vtkMRMLScalarVolumeNode", "Modality", "MR")
    assert selector.nodes() == []
    assert selector.currentNode() is None
    volume.SetAttribute("Modality", "MR")
    assert selector.nodes() == [volume]


def test_add_rename_and_remove(selector, slicer_host):
    import slicer

    selector.baseName = "Result"
    added = []
    selector.nodeAddedByUser.connect(added.append)
    node = selector.addNode()
    assert added == [node]
    assert selector.currentNode() is node
    assert node.GetName() == "Result"
    with slicer_host.dialogs.answer("Rename", ("Better", True)):
        selector.renameCurrentNode()
    assert node.GetName() == "Better"
    selector.removeCurrentNode()
    assert selector.currentNode() is None
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


def test_closing_the_scene_leaves_no_node(selector, slicer_host):
    selector.setCurrentNode(add("vtkMRMLScalarVolumeNode", "MR"))
    got = []
    selector.connect("currentNodeChanged(bool)", got.append)
    slicer_host.close_scene()
    assert selector.currentNode() is None
    assert got == [False]


def test_checkable_nodes(slicer_host):
    import slicer

    box = slicer.qMRMLCheckableNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.setMRMLScene(slicer.mrmlScene)
    first, second = add("vtkMRMLScalarVolumeNode", "first"), add("vtkMRMLScalarVolumeNode", "second")
    got = []
    box.connect("checkedNodesChanged()", lambda: got.append(box.checkedNodes()))
    box.setCheckState(second, 2)
    assert got == [[second]]
    assert box.uncheckedNodes() == [first]
    box.setMRMLScene(None)


def test_segments_table_shows_selects_and_renames(tumor_segmentation):
    import slicer

    table = slicer.qMRMLSegmentsTableView()
    table.setMRMLScene(slicer.mrmlScene)
    table.setSegmentationNode(tumor_segmentation)
    tumor_segmentation.GetSegmentation().AddEmptySegment("edema", "edema")
    assert table.displayedSegmentIDs() == ("tumor", "edema")
    table.setSelectedSegmentIDs(["edema"])
    assert table.selectedSegmentIDs() == ("edema",)
    table.tableWidget().item(0, table.NAME).setText("core")
    assert tumor_segmentation.GetSegmentation().GetSegment("tumor").GetName() == "core"
    table.setSegmentationNode(None)
    assert table.displayedSegmentIDs() == ()


def test_segment_selector_follows_its_segmentation(tumor_segmentation):
    import slicer

    widget = slicer.qMRMLSegmentSelectorWidget()
    got = []
    widget.connect("currentSegmentChanged(QString)", got.append)
    widget.setMRMLScene(slicer.mrmlScene)
    assert widget.currentNode() is tumor_segmentation
    assert got[-1] == widget.currentSegmentID() == "tumor"
    widget.setMRMLScene(None)


def test_the_segment_editor_holds_its_nodes(tumor_segmentation, head_volume):
    import slicer

    editor = slicer.qMRMLSegmentEditorWidget()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.setMRMLScene(slicer.mrmlScene)
    editor.setMRMLSegmentEditorNode(node)
    editor.setSegmentationNode(tumor_segmentation)
    editor.setSourceVolumeNode(head_volume)
    assert editor.currentSegmentID() == "tumor"
    assert node.GetSegmentationNode() is tumor_segmentation
    with pytest.raises(NotImplementedError, match="Paint"):
        editor.setActiveEffectByName("Paint")


def test_a_table_view_shows_a_table(slicer_host):
    import numpy as np
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    view = slicer.qMRMLTableView()
    view.setMRMLTableNode(node)
    slicer.util.updateTableFromArray(node, np.array([[1.0, 2.0], [3.0, 4.0]]), ["day", "ml"])
    assert (view.model().rowCount(), view.model().columnCount()) == (2, 2)
    assert view.model().item(1, 1).text() == "4.0" or view.model().item(1, 1).text() == "4"


def test_data_nodes_have_an_item_in_the_subject_hierarchy(slicer_host):
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    node = add("vtkMRMLModelNode", "tumor")
    item = hierarchy.GetItemByDataNode(node)
    assert hierarchy.GetItemName(item) == "tumor"
    view = slicer.qMRMLSubjectHierarchyTreeView()
    view.setMRMLScene(slicer.mrmlScene)
    got = []
    view.connect("currentItemChanged(vtkIdType)", got.append)
    view.setCurrentNode(node)
    slicer.mrmlScene.RemoveNode(node)
    assert got == [item, 0]


def test_an_inert_widget_keeps_properties_and_tells_changes(slicer_host):
    import slicer

    widget = slicer.qMRMLSequenceBrowserSeekWidget()
    widget.setMRMLScene(slicer.mrmlScene)
    assert widget.mrmlScene() is slicer.mrmlScene
    with pytest.raises(AttributeError):
        widget.noSuchMethod()


def test_the_tree_of_the_hierarchy_has_its_columns_and_filter(head_volume, tumor_segmentation, slicer_host):
    import slicer

    tree = slicer.qMRMLSubjectHierarchyTreeView()
    tree.setMRMLScene(slicer.mrmlScene)
    model = tree.model()
    tree.setColumnHidden(model.transformColumn, True)
    tree.sortFilterProxyModel().setNodeTypes(["vtkMRMLSegmentationNode"])
    assert tree.isColumnHidden(model.transformColumn)
    assert [model.item(row, model.nameColumn).text() for row in range(model.rowCount())] == ["Tumor"]
    assert model.item(0, model.idColumn).text() == tumor_segmentation.GetID()
    tree.sortFilterProxyModel().setNodeTypes([])
    tree.nameFilter = "hea"
    assert tree.sortFilterProxyModel().acceptedItemCount() == 1
    assert tree.model().item(0, model.nameColumn).text() == head_volume.GetName()


def test_widgets_are_found_in_slicers_libraries_too(slicer_host):
    import slicer
    from PythonQt.QtWidgets import QPushButton
    from qSlicerSegmentationsModuleWidgetsPythonQt import qMRMLSegmentEditorWidget

    assert qMRMLSegmentEditorWidget is slicer.qMRMLSegmentEditorWidget
    assert QPushButton("Apply").text == "Apply"


def test_an_effect_is_announced_once(slicer_host):
    import slicer

    factory, names = slicer.qSlicerSegmentEditorEffectFactory.instance(), []
    factory.connect("effectRegistered(QString)", names.append)
    effect = slicer.qSlicerSegmentEditorScriptedEffect(None)
    effect.name = "Grow"
    assert factory.registerEffect(effect)
    assert not factory.registerEffect(effect)
    assert names == ["Grow"]
    factory.disconnect("effectRegistered(QString)")
    factory.cleanup()
