"""Links that leave docs/ lead to pages of the site, and a notebook becomes a page."""

from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
nbformat = pytest.importorskip("nbformat")

from notebooks import to_markdown  # noqa: E402
from outside import Outside, fenced, place  # noqa: E402


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in {
        "docs/guides/a.md": "",
        "checkpoints/m/README.md": "![s](samples.png) and [code](../../tools/run.py)",
        "checkpoints/m/samples.png": "\x89",
        "tools/run.py": "print('```')\n",
        "CHANGELOG.md": "See [a](docs/guides/a.md).",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_links_lead_to_the_pages_of_files(repository: Path) -> None:
    relink = Outside(repository).relink
    page = {"origin": "docs/guides/a.md", "page": "guides/a.md"}
    assert relink("[m](../../checkpoints/m/README.md#use)", **page) == "[m](../models/m.md#use)"
    assert relink("[m](../../checkpoints/m)", **page) == "[m](../models/m.md)"
    assert relink("[r](../../tools/run.py)", **page) == "[r](../source/tools/run.py.md)"
    assert relink('<a href="../../tools/run.py">', **page) == '<a href="../source/tools/run.py.html">'
    assert relink("[a](docs/guides/a.md)", origin="CHANGELOG.md", page="changelog.md") == "[a](guides/a.md)"


@pytest.mark.parametrize(
    "text", ["[x](https://example.org/a)", "[x](#here)", "[x](../missing.md)", "`[m](../../tools/run.py)`"]
)
def test_other_links_and_code_stay(repository: Path, text: str) -> None:
    assert Outside(repository).relink(text, origin="docs/guides/a.md", page="guides/a.md") == text
    block = f"```\n{text}\n```"
    assert Outside(repository).relink(block, origin="docs/guides/a.md", page="guides/a.md") == block


def test_files_that_a_page_links_to_are_added_with_what_they_link_to(repository: Path) -> None:
    added = Outside(repository).collect({"docs/guides/a.md": "[tools](../../tools)"})
    assert set(added) == {
        "changelog.md",
        "models/m.md",
        "source/checkpoints/m/samples.png",
        "source/tools.md",
        "source/tools/run.py.md",
    }
    assert added["source/checkpoints/m/samples.png"].content == (repository / "checkpoints/m/samples.png").read_bytes()
    assert "- [run.py](tools/run.py)" in str(added["source/tools.md"].content)


def test_a_fence_is_longer_than_those_in_the_text() -> None:
    assert fenced("print('```')\n", "run.py") == "````python\nprint('```')\n````"
    assert place("docs/guides/a.md") == "guides/a.md"


def test_a_notebook_shows_cells_and_outputs(tmp_path: Path) -> None:
    v4 = nbformat.v4
    outputs = [
        v4.new_output("stream", name="stdout", text="2\n"),
        v4.new_output("stream", name="stderr", text="warning"),
        v4.new_output("display_data", {"image/png": "aGk=\n", "text/plain": "<Image>"}),
    ]
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell("print(1 + 1)", outputs=outputs)]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    text = to_markdown(tmp_path / "a.ipynb")
    assert text.startswith("# Title\n\n```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n\n<img alt=")
    assert 'src="data:image/png;base64,aGk="' in text
    assert "warning" not in text
    assert "<Image>" not in text
