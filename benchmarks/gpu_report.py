"""The tables of gpu.py, as Markdown and JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

Row = dict[str, str | float | int | None]
"""Cells by heading."""


@dataclass
class Report:
    """Tables by title, written after every case."""

    folder: Path
    head: dict[str, object]
    tables: dict[str, list[Row]] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    """Cases that failed or did not run, and why."""

    def add(self, title: str, rows: Sequence[Row]) -> None:
        self.tables.setdefault(title, []).extend(rows)

    def write(self) -> None:
        """Replace OUTPUT/gpu.json and OUTPUT/gpu.md."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {**self.head, "tables": self.tables, "unfinished": self.unfinished}
        texts = {"gpu.json": json.dumps(content, indent=2) + "\n", "gpu.md": self.markdown()}
        for name, text in texts.items():
            temporary = self.folder / f"{name}.tmp"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.folder / name)

    def markdown(self) -> str:
        lines = [f"# Speed on {self.head['device']}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self.head.items()]
        for title, rows in self.tables.items():
            headings = list(dict.fromkeys(name for row in rows for name in row))
            lines += ["", f"## {title}", "", _line(headings), _line(["---"] * len(headings))]
            lines += [_line([_cell(row.get(name)) for name in headings]) for row in rows]
        if self.unfinished:
            lines += ["", "## Not measured", "", "| case | reason |", "|---|---|"]
            lines += [f"| {name} | {reason} |" for name, reason in self.unfinished.items()]
        return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
