"""How long the user waits: from the press of Segment to the segments in the scene, in the module itself.

``python Testing/Benchmarks/press.py [CASE] [--device cpu] [--presses 4] [--json FILE]``

Runs the module with its real worker process in the headless host. The first press is cold: the worker starts, torch is
imported and the model is read; the others are warm. CASE is a folder that `twinseg segment` takes; without one, a
synthetic patient of 182 x 218 x 182 voxels of 1 mm. Beside each press: how long the window stood still while it ran,
and while the result was put into the scene.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parents[2]
MODULE = HOUSE / "TwinSegSlicer/TwinSegSlicer.py"
LONGEST = 600  # seconds that a press may take
sys.path[:0] = [str(HOUSE / "Testing"), str(MODULE.parent)]


def main() -> None:
    parser = argparse.ArgumentParser(description="From the press of Segment to the segments in the scene.")
    parser.add_argument("case", type=Path, nargs="?", help="folder of a case; without it a synthetic patient")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument("--presses", type=int, default=4, help="of which the first is cold")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()

    from SlicerHost.host import start

    host = start()
    with tempfile.TemporaryDirectory() as home:
        os.environ["TWINSEG_HOME"] = home
        widget = host.open(MODULE)
        shape = add_volumes(options.case)
        widget.inputsPanel.findSequences()
        widget.logic.getParameterNode().device = options.device
        presses = [press(host, widget) for _ in range(options.presses)]
        computed = widget.ui.originLabel.text
        widget.logic.stop()
    print(f"{options.case or 'synthetic patient'}, {' x '.join(map(str, shape))} voxels, {os.cpu_count()} cores")
    print(computed)
    print(f"{'press':8}{'seconds':>10}{'window still, ms':>20}{'into the scene, ms':>20}")
    for number, row in enumerate(presses):
        name = "warm" if number else "cold"
        print(f"{name:8}{row['seconds']:10.1f}{row['still_ms']:20.0f}{row['into_scene_ms']:20.0f}")
    if options.json:
        options.json.write_text(json.dumps({"shape": shape, "made_by": computed, "presses": presses}, indent=1))


def add_volumes(case: Path | None) -> tuple[int, ...]:
    """Put the sequences into the scene; return the shape (I, J, K) of the first."""
    import slicer

    from twinseg.phantom import Scanner, make_patient
    from twinseg.segmentation import case_of_folder
    from twinseg.tasks import load_task

    if case is not None:
        images = case_of_folder(case, load_task("brats-glioma")).images
        nodes = [slicer.util.loadVolume(str(file), {"name": f"case_{name}"}) for name, file in images.items()]
    else:
        patient = make_patient(3, scanner=Scanner.for_site(0), size=(182, 218, 182), spacing=1.0)
        nodes = []
        for name, image in patient.images.items():
            nodes.append(slicer.util.addVolumeFromArray(image.array.T.copy(), name=f"case_{name}"))
            nodes[-1].SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(image.affine))
    return tuple(nodes[0].GetImageData().GetDimensions())


def press(host: Any, widget: Any) -> dict[str, float]:
    """Press Segment and wait for the result; what a timer in the window's event loop saw meanwhile."""
    import qt

    segmenter = widget.logic.segmenter
    gaps: list[tuple[float, bool, bool]] = []  # seconds, was a segmentation running before, and after
    last = time.perf_counter(), False

    def beat() -> None:
        nonlocal last
        now = time.perf_counter(), segmenter.isRunning
        gaps.append((now[0] - last[0], last[1], now[1]))
        last = now

    timer = qt.QTimer()
    timer.setInterval(5)
    timer.connect("timeout()", beat)
    timer.start()
    if not widget.ui.segmentButton.enabled:
        raise SystemExit(f"Segment cannot be pressed: {widget.ui.segmentButton.toolTip}")
    started = time.perf_counter()
    widget.ui.segmentButton.click()
    if not host.app.wait_until(lambda: not segmenter.isRunning, LONGEST):
        raise SystemExit(f"no result within {LONGEST} s")
    seconds = time.perf_counter() - started
    host.process_events(0.1)
    timer.stop()
    still = max(gap for gap, before, after in gaps if before and after)
    into_scene = max(gap for gap, before, after in gaps if before and not after)
    return {"seconds": seconds, "still_ms": 1000 * still, "into_scene_ms": 1000 * into_scene}


if __name__ == "__main__":
    main()
