"""Draws the pictures of the modules: the icons, and what Docs/tutorial.md and Docs/federation.md show, in the host.

    python Testing/screenshots.py              # or make screenshots
    python Testing/screenshots.py --only icons

Everything is made here: the patients are synthetic, the data folder a temporary one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / room) for room in ("Testing", "TwinSegSlicer", "FederatedClient")]
PARTS = ("icons", "module", "twin", "federation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="draw a part of the pictures")
    options = parser.parse_args()
    from SlicerHost.host import start  # before anything that imports PySide6

    host = start()
    from Screenshots.federation import FederationPictures
    from Screenshots.icons import draw_icons, draw_thumbnail
    from Screenshots.module import ModulePictures
    from Screenshots.twin import TwinPictures

    if options.only in (None, "icons"):
        draw_icons()
        draw_thumbnail()
    for name, kind in (("module", ModulePictures), ("twin", TwinPictures), ("federation", FederationPictures)):
        if options.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="TwinSeg-pictures-", ignore_cleanup_errors=True) as home:
                os.environ["TWINSEG_HOME"] = home
                pictures = kind(host)
                try:
                    pictures.draw(Path(home))
                finally:
                    pictures.widget.cleanup()
                    host.close_scene()


if __name__ == "__main__":
    main()
