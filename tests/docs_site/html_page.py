"""What a page of the built site holds: ids, links, loaded resources, and rows of tables of options."""

import re
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

LOADED = {"src", "srcset", "poster", "data"}
"""Attributes whose address a browser loads."""
LINKED = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload", "manifest"}
"""Kinds of <link> whose address a browser loads or connects to."""


@dataclass
class Content:
    """Parts of a page.

    Args:
        rows: text of the cells of each table row, by the first id in it.
    """

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    classes: set[str] = field(default_factory=set)
    rows: dict[str, list[str]] = field(default_factory=dict)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.content, self._cells, self._id = Content(), [], None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.content.ids.add(given["id"])
            self._id = self._id or given["id"]
        if tag == "a" and "href" in given:
            self.content.links.append(given["href"])
        self.content.loads += [given[name] for name in LOADED & given.keys()]
        if tag == "link" and LINKED & set(given.get("rel", "").split()):
            self.content.loads.append(given["href"])
        self.content.loads += re.findall(r"url\(([^)]*)\)", given.get("style", ""))
        self.content.classes |= set(given.get("class", "").split())
        if tag == "tr":
            self._cells, self._id = [], None
        if tag == "td":
            self._cells.append("")

    def handle_data(self, data: str) -> None:
        if self._cells:
            self._cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr" and self._id is not None:
            self.content.rows[self._id] = [" ".join(cell.split()) for cell in self._cells]
            self._cells = []


@cache
def read(path: Path) -> Content:
    """The content of a page."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.content
