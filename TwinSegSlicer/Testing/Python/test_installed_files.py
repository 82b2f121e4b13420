"""Run by ctest from Slicer's flat folder of scripted modules: what was installed there works without the sources."""

import importlib
import unittest
from pathlib import Path

import slicer

import twinseg
from twinseg.home import resource_folders
from twinseg.tasks import list_tasks


class InstalledFilesTest(unittest.TestCase):
    def setUp(self):
        self.folder = Path(slicer.modules.twinsegslicer.path).parent

    def test_the_library_is_the_installed_one(self):
        self.assertEqual(Path(twinseg.__file__).parents[1], self.folder)

    def test_tasks_and_the_starter_model_are_found(self):
        self.assertIn(self.folder / "Resources/Tasks", resource_folders("Tasks"))
        self.assertIn("brats-glioma", [task.name for task in list_tasks()])
        self.assertIn(self.folder / "Resources/Models", resource_folders("Models"))
        self.assertTrue((self.folder / "Resources/Models/brats-glioma.safetensors").is_file())

    def test_every_file_of_the_library_finds_the_others(self):
        for path in sorted((self.folder / "twinseg").rglob("*.py")):
            name = ".".join(path.relative_to(self.folder).with_suffix("").parts).removesuffix(".__init__")
            with self.subTest(name):
                try:
                    importlib.import_module(name)
                except ModuleNotFoundError as error:  # of a package that the user has not installed yet
                    self.assertNotEqual((error.name or "").split(".")[0], "twinseg", str(error))


if __name__ == "__main__":
    unittest.main()
