"""A notebook as a page: its cells, and their stored outputs."""

import html
from pathlib import Path

import nbformat


def to_markdown(path: Path) -> str:
    """The page. Pictures are embedded."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts += [f"```python\n{cell.source}\n```", *filter(None, map(_output, cell.outputs))]
    return "\n\n".join(parts) + "\n"


def _output(output: nbformat.NotebookNode) -> str:
    if output.output_type == "stream":
        return "" if output.name == "stderr" else _text(output.text)
    if output.output_type == "error":
        return _text(f"{output.ename}: {output.evalue}")
    for kind in ("image/png", "image/jpeg", "image/webp"):
        if kind in output.data:
            alt = html.escape(str(output.metadata.get("alt", "Output of the cell above")), quote=True)
            return f'<img alt="{alt}" src="data:{kind};base64,{"".join(output.data[kind].split())}">'
    if "text/markdown" in output.data:
        return str(output.data["text/markdown"])
    return _text(output.data["text/plain"]) if "text/plain" in output.data else ""


def _text(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"
