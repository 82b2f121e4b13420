"""A unittest file beside the module, as ``slicer_add_python_unittest`` runs it."""

import unittest

import slicer
from HostSampleLib.threshold import threshold_array


class ThresholdTest(unittest.TestCase):
    def test_values_above_the_threshold_stay(self):
        self.assertEqual(list(threshold_array([1, 5, 9], 5, invert=False)), [0, 5, 9])

    def test_the_module_is_loaded(self):
        self.assertIn("HostSample", slicer.util.moduleNames())
