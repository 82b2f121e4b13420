"""The page that the demonstration ends with: one HTML file that holds its pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.6rem;margin:0}
h2{font-size:1.15rem;margin:2.4rem 0 .5rem;border-bottom:1px solid #d0d7de;padding-bottom:.2rem}
img{max-width:100%;border-radius:4px}
table{border-collapse:collapse;margin:.6rem 0}
td,th{padding:.25rem .9rem;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}
pre{background:#f6f8fa;padding:.45rem .7rem;margin:.4rem 0;border-radius:4px;font-size:.8rem;white-space:pre-wrap;
overflow-wrap:anywhere}
.note{color:#57606a;font-size:.9em}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.8rem;margin:1.2rem 0}
.card{border:1px solid #d0d7de;border-radius:6px;padding:.7rem .9rem}
.card b{display:block;font-size:1.35rem}
.card span{color:#57606a;font-size:.88rem;line-height:1.35;display:block}
"""


@dataclass
class Page:
    """Grows part by part. `result` puts a number in large letters at its top."""

    title: str
    summary: str
    body: list[str] = field(default_factory=list)
    results: list[tuple[str, str]] = field(default_factory=list)

    def heading(self, text: str) -> None:
        self.body.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str, style: str = "") -> None:
        self.body.append(f'<p class="{style}">{html.escape(text)}</p>')

    def command(self, line: str, seconds: float | None = None) -> None:
        """A command, and how long it took; without that, one that runs beside the next ones."""
        end = " &" if seconds is None else f"   # {seconds:.0f} s"
        self.body.append(f"<pre>{html.escape(line + end)}</pre>")

    def picture(self, png: bytes, description: str) -> None:
        source = base64.b64encode(png).decode()
        self.body.append(f'<p><img alt="{html.escape(description)}" src="data:image/png;base64,{source}"></p>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        self.body.append("<table>" + row(header, "th") + "".join(row(cells, "td") for cells in rows) + "</table>")

    def link(self, address: str, text: str) -> None:
        self.body.append(f'<p><a href="{html.escape(address)}">{html.escape(text)}</a></p>')

    def result(self, number: str, meaning: str) -> None:
        self.results.append((number, meaning))

    def write(self, path: Path) -> None:
        cards = "".join(
            f'<div class="card"><b>{html.escape(number)}</b><span>{html.escape(meaning)}</span></div>'
            for number, meaning in self.results
        )
        head = (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        )
        top = f'<h1>{html.escape(self.title)}</h1><p>{html.escape(self.summary)}</p><div class="cards">{cards}</div>'
        path.write_text(f"{head}{top}" + "\n".join(self.body) + "</html>\n", encoding="utf-8")
