"""Files outside docs/ in the site: model cards, the changelog, and sources that a page links to.

A link such as `../../examples/slurm/train.sbatch` works on GitHub. Here it leads to a page with the text of that file.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.structure.files import InclusionLevel
from notebooks import to_markdown
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

LINK = re.compile(r"""(\]\(|\b(?:src|href|poster)=")(?![a-z]+:)([^)"#\s]+)""")
CODE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2 *$|(?<!`)(`+)(?!`).*?(?<!`)\3(?!`)", re.DOTALL | re.MULTILINE)
MEDIA = (".png", ".webp", ".jpg", ".svg", ".gif", ".mp4", ".webm")
LARGEST = 200_000
"""Bytes of a file whose text is shown."""


@dataclass(frozen=True)
class Added:
    """A file of the site.

    Args:
        path: its path in the repository.
        content: text of a page, or bytes of a picture.
    """

    path: str
    content: str | bytes

    @property
    def inclusion(self) -> InclusionLevel:
        """Sources have no entry in the navigation."""
        return InclusionLevel.NOT_IN_NAV if self.uri.startswith("source/") else InclusionLevel.INCLUDED

    @property
    def uri(self) -> str:
        """Path in the site."""
        return place(self.path)


def place(path: str) -> str:
    """Path in the site of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    if path == "CHANGELOG.md":
        return "changelog.md"
    if card := re.fullmatch(r"checkpoints/([^/]+)(/README.md)?", path):
        return f"models/{card[1]}.md"
    if readme := re.fullmatch(r"integrations/([^/]+)(/README.md)?", path):
        return f"integrations/{readme[1]}.md"
    if path.endswith(".ipynb"):
        return f"notebooks/{Path(path).stem}.md"
    return f"source/{path}" if path.endswith((".md", *MEDIA)) else f"source/{path}.md"


class Outside:
    """Pages for files of the repository that lie outside docs/."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.always = [
            "CHANGELOG.md",
            *sorted(path.relative_to(root).as_posix() for path in root.glob("checkpoints/*/README.md")),
            *sorted(path.relative_to(root).as_posix() for path in root.glob("integrations/*/README.md")),
            *sorted(path.relative_to(root).as_posix() for path in root.glob("examples/*.ipynb")),
        ]
        """Files that have a page even if nothing links to them."""

    def collect(self, texts: Mapping[str, str]) -> dict[str, Added]:
        """Files to add to the site, by their path in it: `always`, and what `texts` (by path) and these link to."""
        added: dict[str, Added] = {}
        waiting = [*self.always, *(target for path, text in texts.items() for target in self.targets(text, path))]
        while waiting:
            path = self.resolved(waiting.pop())
            if place(path) in added or path.startswith("docs/") or path == "README.md":
                continue
            entry = added[place(path)] = Added(path, self.content(path))
            if isinstance(entry.content, str):
                waiting += self.targets(entry.content, path)
        return added

    def resolved(self, path: str) -> str:
        """The README of a folder that has one."""
        readme = join(path, "README.md")
        return readme if (self.root / readme).is_file() else path

    def targets(self, text: str, origin: str) -> list[str]:
        """Files outside docs/ that the text of the file `origin` links to."""
        found = [normpath(join(dirname(origin), target)) for _, target in LINK.findall(CODE.sub("", text))]
        return [path for path in found if not path.startswith(("docs/", "..")) and (self.root / path).exists()]

    def relink(self, text: str, *, origin: str, page: str) -> str:
        """The text of the file `origin`, with links that are right on the page `page`."""

        def new(link: re.Match[str]) -> str:
            path = normpath(join(dirname(origin), link[2]))
            if path.startswith("..") or not (self.root / path).exists():
                return link[0]
            target = place(self.resolved(path))
            if link[1] != "](":  # MkDocs changes no link in HTML
                target = re.sub(r"\.md$", ".html", target)
            return link[1] + relpath(target, dirname(page) or ".")

        parts, end = [], 0
        for code in CODE.finditer(text):
            parts += [LINK.sub(new, text[end : code.start()]), code[0]]
            end = code.end()
        return "".join([*parts, LINK.sub(new, text[end:])])

    def content(self, path: str) -> str | bytes:
        """What the site shows of a file."""
        file = self.root / path
        if path.endswith(MEDIA):
            return file.read_bytes()
        if path.endswith(".ipynb"):
            return to_markdown(file)
        if path.endswith(".md"):
            return file.read_text(encoding="utf-8")
        hidden = "---\nsearch: {exclude: true}\n---\n"
        if file.is_dir():
            names = sorted(entry.name for entry in file.iterdir() if not entry.name.startswith((".", "__")))
            return f"{hidden}# {path}\n\n" + "\n".join(f"- [{name}]({os.path.basename(path)}/{name})" for name in names)
        data = file.read_bytes()
        if len(data) > LARGEST or b"\0" in data:
            return f"{hidden}# {path}\n\nA file of {len(data):,} bytes in the repository.\n"
        return f"{hidden}# {path}\n\n{fenced(data.decode(), path)}\n"


def fenced(text: str, name: str) -> str:
    """A code block with the language of a file name."""
    try:
        language = get_lexer_for_filename(name).aliases[0]
    except ClassNotFound:
        language = "bash" if text.startswith("#!") else "text"
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
