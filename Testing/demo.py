"""The demonstration behind `make demo`: what the project does, on patients made on the spot, in a few minutes.

Makes two hospitals' synthetic patients, trains the starter model further on them, scores it on patients it has not
seen, segments one; where the real lower-grade gliomas of ../shared/data are at hand, trains on them too and segments a
real patient. All through the same commands that a user types. Ends with OUTPUT/report.html.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinseg.cases import find_cases, load_case
from twinseg.pictures import slices_picture
from twinseg.tasks import load_task
from twinseg.volumes import read_labels

STARTER = Path(__file__).resolve().parents[1] / "TwinSegSlicer/Resources/Models/brats-glioma.safetensors"
REAL = Path(__file__).resolve().parents[2] / "shared/data/lgg"
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
img{max-width:100%;border-radius:4px}table{border-collapse:collapse}td,th{padding:.25rem .9rem;text-align:right;
border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}code{background:#f3f3f3;padding:.1rem .3rem}
pre{background:#f3f3f3;padding:.6rem;white-space:pre-wrap;overflow-wrap:anywhere}.note{color:#666;font-size:.9em}"""


@dataclass
class Report:
    """An HTML page that grows section by section; pictures are held in the page itself."""

    title: str
    body: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.body.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, style: str = "") -> None:
        self.body.append(f'<p class="{style}">{html.escape(text)}</p>')

    def command(self, words: list[str], seconds: float) -> None:
        self.body.append(f"<pre>{html.escape(' '.join(words))}   # {seconds:.0f} s</pre>")

    def picture(self, png: bytes, description: str) -> None:
        source = base64.b64encode(png).decode()
        self.body.append(f'<img alt="{html.escape(description)}" src="data:image/png;base64,{source}">')

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        def row(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        self.body.append("<table>" + row(header, "th") + "".join(row(cells, "td") for cells in rows) + "</table>")

    def write(self, path: Path) -> None:
        head = f'<!doctype html><meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{STYLE}</style>'
        path.write_text(f"{head}<h1>{html.escape(self.title)}</h1>" + "\n".join(self.body), encoding="utf-8")


def twinseg(report: Report, *words: str | Path) -> None:
    """Run a twinseg command as a user would, and put it into the report. A fault ends the demonstration."""
    command = ["twinseg", *map(str, words)]
    print("$", *command, flush=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "twinseg.cli", *command[1:]], check=True)
    report.command(command, time.perf_counter() - started)


def train_and_show(report: Report, data: Path, task: str, minutes: float, folder: Path) -> dict[str, Any]:
    """Train, score on the test patients, segment one of them, and tell of each."""
    model, scores, picture = folder / f"{task}.safetensors", folder / f"{task}-test.json", folder / f"{task}.nii.gz"
    twinseg(report, "train", data, "--task", task, "--output", model, "--init", STARTER, "--minutes", f"{minutes:g}")
    report.picture(model.with_suffix(".png").read_bytes(), "training curve")
    twinseg(report, "evaluate", data, "--model", model, "--json", scores)
    measured: dict[str, Any] = json.loads(scores.read_text())
    regions = list(measured["summary"]["all"])
    by_site = [*measured["summary"]["sites"].items(), ("all", measured["summary"]["all"])]
    rows = [
        [site, *(f"{means[r]['dice']['mean']:.3f}" for r in regions), str(means[regions[0]]["dice"]["n"])]
        for site, means in by_site
    ]
    report.text("Dice on patients that the model has not seen:")
    report.table(["site", *regions, "patients"], rows)

    loaded_task = load_task(task)
    ranked = sorted(measured["cases"], key=lambda row: row["regions"][regions[0]]["dice"])
    middle = ranked[len(ranked) // 2]
    case = next(case for case in find_cases(data, loaded_task) if case.name == middle["case"])
    images = [word for name, path in case.images.items() for word in ("--image", f"{name}={path}")]
    twinseg(report, "segment", "--output", picture, "--model", model, *images)
    shown = load_case(case, loaded_task)
    image = shown.images.get("flair", shown.reference)
    drawn = slices_picture(image, loaded_task, read_labels(picture), shown.labels, f"{middle['case']}: FLAIR")
    report.picture(drawn, "slices with outlines")
    report.text("The patient with the middle Dice. Coloured: the model; white, dashed: the reference.", "note")
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--minutes", type=float, default=1.5, help="of training, for each of the two models")
    parser.add_argument("--real", type=Path, default=REAL, help="folder of real lower-grade gliomas, if there is one")
    options = parser.parse_args()
    started = time.perf_counter()
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    report = Report("TwinSegSlicer: a demonstration")

    report.heading("Two hospitals, synthetic patients")
    cohort = folder / "phantoms"
    twinseg(report, "phantom", cohort, "--sites", "2", "--patients", "8", "--size", "88", "--spacing", "2")
    train_and_show(report, cohort, "brats-glioma", options.minutes, folder)

    if options.real.is_dir():
        report.heading("Real lower-grade gliomas")
        train_and_show(report, options.real, "lgg-flair", options.minutes, folder)
        report.text(f"Trained for {options.minutes:g} minutes only; the README has a whole training.", "note")
    else:
        report.text(f"The real cases ({options.real}) are not here: that part was left out.", "note")
    report.text(f"Made in {time.perf_counter() - started:.0f} s. For research only; not for diagnosis.", "note")
    report.write(folder / "report.html")
    print(f"{folder / 'report.html'}: open it in a browser ({time.perf_counter() - started:.0f} s)")


if __name__ == "__main__":
    main()
