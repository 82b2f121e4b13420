"""``slicer.app.ioManager()``: loading and saving nodes, by the readers and writers that slicer-core has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
import vtk

# File type -> extensions, the longer ones first where one ends like another.
FILE_TYPES = {
    "SceneFile": (".mrml", ".mrb"),
    "SegmentationFile": (".seg.nrrd", ".seg.nhdr", ".seg.vtm"),
    "SequenceFile": (".seq.nrrd", ".seq.nhdr", ".seq.mha"),
    "MarkupsFile": (".mrk.json", ".fcsv"),
    "ColorTableFile": (".ctbl", ".cxml"),
    "TransformFile": (".tfm", ".h5", ".mat"),
    "ModelFile": (".vtk", ".vtp", ".stl", ".ply", ".obj", ".vtu"),
    "TableFile": (".tsv", ".csv", ".schema.tsv"),
    "TextFile": (".txt", ".json", ".xml"),
    "VolumeFile": (
        ".nrrd",
        ".nhdr",
        ".nii.gz",
        ".nii",
        ".mha",
        ".mhd",
        ".hdr",
        ".img",
        ".mgz",
        ".dcm",
        ".tif",
        ".png",
        ".jpg",
    ),
}

# Bits of the loading options of Slicer's volumes logic.
LABEL_MAP, CENTERED, SINGLE_FILE, AUTO_WINDOW_LEVEL, DISCARD_ORIENTATION = 1, 2, 4, 8, 16

# What the storage node of volumes writes; it does not list them here.
VOLUME_FORMATS = (
    "NRRD (.nrrd)",
    "NRRD (.nhdr)",
    "NIfTI (.nii)",
    "NIfTI, compressed (.nii.gz)",
    "MetaImage (.mha)",
    "MetaImage (.mhd)",
)

Properties = dict[str, Any]


def _logic(module: str) -> Any:
    return getattr(slicer.modules, module).logic()


def load_volume(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A scalar, vector or label volume."""
    options = AUTO_WINDOW_LEVEL if properties.get("autoWindowLevel", True) else 0
    options |= LABEL_MAP if properties.get("labelmap") else 0
    options |= CENTERED if properties.get("center") else 0
    options |= SINGLE_FILE if properties.get("singleFile") else 0
    options |= DISCARD_ORIENTATION if properties.get("discardOrientation") else 0
    node = _logic("volumes").AddArchetypeVolume(path, name, options)
    if node is not None and properties.get("show", True):
        slicer.util.setSliceViewerLayers(**{"label" if properties.get("labelmap") else "background": node}, fit=True)
    return [node]


def load_segmentation(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A segmentation, or a label map as one."""
    colors = slicer.mrmlScene.GetNodeByID(properties["colorNodeID"]) if properties.get("colorNodeID") else None
    opacities = properties.get("autoOpacities", True)
    return [_logic("segmentations").LoadSegmentationFromFile(path, opacities, name, colors, messages)]


def load_model(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A surface or volume mesh, taken as LPS unless ``coordinateSystem`` says otherwise."""
    system = properties.get("coordinateSystem", slicer.vtkMRMLStorageNode.CoordinateSystemLPS)
    return [_logic("models").AddModel(path, system, messages)]


def load_markups(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A markups list, curve, plane or ROI."""
    node_ids = _logic("markups").LoadMarkups(path, name, messages)
    return [slicer.mrmlScene.GetNodeByID(node_id) for node_id in (node_ids or "").split(",") if node_id]


def load_table(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A table."""
    return [_logic("tables").AddTable(path, name, True, "", messages)]


def load_transform(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A linear, grid or spline transform."""
    return [_logic("transforms").AddTransform(path, slicer.mrmlScene, messages)]


def load_sequence(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A sequence of volumes or transforms."""
    return [_logic("sequences").AddSequence(path, messages)]


def load_color_table(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A colour table."""
    return [_logic("colors").LoadColorFile(path, name, messages)]


def load_text(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A text."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", name)
    node.SetText(Path(path).read_text(encoding="utf-8"))
    return [node]


def load_scene(path: str, name: str, properties: Properties, messages: Any) -> list[Any]:
    """A scene, into the current one, or in place of it when the property ``clear`` is set."""
    scene = slicer.mrmlScene
    clear = bool(properties.get("clear"))
    if path.lower().endswith(".mrb"):
        success = scene.ReadFromMRB(path, clear, messages)
    else:
        scene.SetURL(path)
        success = scene.Connect(messages) if clear else scene.Import(messages)
    return [scene] if success else [None]


LOADERS: dict[str, Callable[[str, str, Properties, Any], list[Any]]] = {
    "ColorTableFile": load_color_table,
    "MarkupsFile": load_markups,
    "ModelFile": load_model,
    "SceneFile": load_scene,
    "SegmentationFile": load_segmentation,
    "SequenceFile": load_sequence,
    "TableFile": load_table,
    "TextFile": load_text,
    "TransformFile": load_transform,
    "VolumeFile": load_volume,
}


class IOManager:
    """The part of qSlicerCoreIOManager that ``slicer.util`` and modules call."""

    def fileType(self, path: str) -> str:
        """The type that the extension stands for, "NoFile" if none does."""
        name = str(path).lower()
        if name.endswith((".nrrd", ".nhdr")) and Path(path).is_file():
            with open(path, "rb") as file:
                if b"Segmentation_" in file.read(4096):
                    return "SegmentationFile"
        found = [(len(end), kind) for kind, ends in FILE_TYPES.items() for end in ends if name.endswith(end)]
        return max(found)[1] if found else "NoFile"

    def loadNodes(self, file_type: str, properties: Properties, loaded: Any = None, messages: Any = None) -> bool:
        """Load a file into the scene; the new nodes go into the collection ``loaded``. Tells whether it worked."""
        path = str(properties["fileName"])
        name = properties.get("name") or self._base_name(path)
        if file_type not in LOADERS or not Path(path).exists():
            if messages is not None:
                reason = "file not found" if file_type in LOADERS else f"no reader for {file_type}"
                messages.AddMessage(vtk.vtkCommand.ErrorEvent, f"{path}: {reason}")
            return False
        nodes = LOADERS[file_type](path, name, properties, messages)
        for node in nodes:
            if node is not None and loaded is not None and not node.IsA("vtkMRMLScene"):
                loaded.AddItem(node)
        if file_type == "SceneFile" and loaded is not None and nodes[0] is not None:
            loaded.AddItem(slicer.mrmlScene)
        slicer.app.processEvents()
        return all(node is not None for node in nodes)

    def _base_name(self, path: str) -> str:
        name = Path(path).name
        ends = sorted((end for ends in FILE_TYPES.values() for end in ends), key=len, reverse=True)
        return next((name[: -len(end)] for end in ends if name.lower().endswith(end)), Path(path).stem)

    def fileWriterFileType(self, node: Any, fileName: str = "") -> str:
        """The file type of a node's class."""
        kinds = (
            ("vtkMRMLSegmentationNode", "SegmentationFile"), ("vtkMRMLVolumeNode", "VolumeFile"),
            ("vtkMRMLModelNode", "ModelFile"), ("vtkMRMLMarkupsNode", "MarkupsFile"), ("vtkMRMLTableNode", "TableFile"),
            ("vtkMRMLTransformNode", "TransformFile"), ("vtkMRMLSequenceNode", "SequenceFile"),
            ("vtkMRMLTextNode", "TextFile"), ("vtkMRMLColorNode", "ColorTableFile"),
        )  # fmt: skip
        return next((file_type for kind, file_type in kinds if node.IsA(kind)), "NoFile")

    def fileWriterExtensions(self, node: Any) -> tuple[str, ...]:
        """The formats that a node can be written in, as "description (.extension)"."""
        storage = node.CreateDefaultStorageNode()
        if storage is None:
            return ()
        storage.UnRegister(None)
        types = storage.GetSupportedWriteFileTypes()
        formats = [types.GetValue(index) for index in range(types.GetNumberOfValues())]
        return tuple(formats or (VOLUME_FORMATS if node.IsA("vtkMRMLVolumeNode") else ()))

    def extractKnownExtension(self, path: str, node: Any) -> str:
        """The longest of the node's extensions that the file name ends with."""
        helper = slicer.vtkDataFileFormatHelper
        ends = [helper.GetFileExtensionFromFormatString(text) for text in self.fileWriterExtensions(node)]
        return max((end for end in ends if path.lower().endswith(end)), key=len, default=Path(path).suffix)

    def saveNodes(self, file_type: str, properties: Properties, messages: Any = None) -> bool:
        """Write one node, or the scene, to a file; the node remembers where."""
        path = str(properties["fileName"])
        if file_type == "SceneFile":
            return self._save_scene(path, messages)
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None and not node.AddDefaultStorageNode(path):
            return False
        storage = node.GetStorageNode()
        storage.SetFileName(path)
        if "useCompression" in properties:
            storage.SetUseCompression(bool(properties["useCompression"]))
        return bool(storage.WriteData(node))

    def _save_scene(self, path: str, messages: Any) -> bool:
        scene = slicer.mrmlScene
        if path.lower().endswith(".mrb"):
            return bool(scene.WriteToMRB(path, None, messages))
        if path.lower().endswith(".mrml"):
            scene.SetRootDirectory(str(Path(path).parent))
            return bool(scene.Commit(path, messages))
        Path(path).mkdir(parents=True, exist_ok=True)
        return bool(slicer.app.applicationLogic().SaveSceneToSlicerDataBundleDirectory(path, None, messages))

    def exportNodes(self, ids: Any, paths: Any, properties: Any, harden: bool = False, messages: Any = None) -> bool:
        """Write nodes to files without touching where they are stored; hardened copies if ``harden``."""
        results = []
        for node_id, path in zip(ids, paths, strict=True):
            node = slicer.mrmlScene.GetNodeByID(node_id)
            if harden and node.GetParentTransformNode() is not None:
                copy = slicer.mrmlScene.CreateNodeByClass(node.GetClassName())
                copy.UnRegister(None)
                copy.CopyContent(node)
                copy.ApplyTransform(node.GetParentTransformNode().GetTransformToParent())
                node = copy
            storage = node.CreateDefaultStorageNode()
            storage.UnRegister(None)
            storage.SetFileName(str(path))
            results.append(bool(storage.WriteData(node)))
        return all(results)

    def registeredFileReaderCount(self, file_type: str) -> int:
        """1 if the host can load this type."""
        return int(file_type in LOADERS)

    def registeredFileWriterCount(self, file_type: str) -> int:
        """1 if the host can save this type."""
        return int(file_type in LOADERS)

    def registerIO(self, reader: Any) -> None:
        """Python readers are not called by the host."""

    def registerDialog(self, dialog: Any) -> None:
        """Python dialogs are not called by the host."""

    def isDialogRegistered(self, *_: Any) -> bool:
        """No dialogs."""
        return False

    def emitNewFileLoaded(self, properties: Any) -> None:
        """No list of recent files."""

    def openDialog(self, *_: Any) -> bool:
        """There is no user to choose a file."""
        return False

    openAddDataDialog = openAddVolumeDialog = openAddModelDialog = openLoadSceneDialog = openSaveDataDialog = openDialog
    openAddTransformDialog = openAddMarkupsDialog = openAddFiducialDialog = openAddColorTableDialog = openDialog
