"""MkDocs' events: pages made from the code, and pages of files outside docs/, see `mkdocs.yml`."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from outside import Outside
from reference import generated_pages

ROOT = Path(__file__).resolve().parents[2]
ICON = ROOT / "rad" / "studio" / "static" / "icon.svg"

ORIGINS: dict[str, str] = {}
"""Path in the repository of each page, by its path in the site."""

HIDDEN = {"index.md": ["navigation", "toc"], "gallery.md": ["navigation"], "changelog.md": ["navigation"]}
"""Columns that pages without neighbours leave out."""

FIRST = ("guides/sampling.md", "guides/training.md")
"""Guides that come first in a search for their subjects."""

CODE = re.compile(r"(?<!<pre>)<code[^>]*>[^<]*</code>")
"""Code inside a line; that of a block has tags, for its colours."""

DASHES = re.compile(r"(?<![\w-])--?\w")
"""Start of an option, such as `--s` of `--steps`."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and those of files outside docs/ that a page links to."""
    for uri, content in generated_pages().items():
        if (short := files.get_file_from_path(uri)) is not None:  # what GitHub shows
            files.remove(short)
        files.append(File.generated(config, uri, content=content))
    files.append(File.generated(config, "assets/icon.svg", abs_src_path=str(ICON)))
    texts = {f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    outside = Outside(ROOT)
    ORIGINS.clear()
    ORIGINS.update({path.removeprefix("docs/"): path for path in texts})
    for uri, added in outside.collect(texts).items():
        files.append(File.generated(config, uri, content=added.content, inclusion=added.inclusion))
        ORIGINS[uri] = added.path
    _expand(config.nav, sorted(ORIGINS))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that leave docs/ into links to the pages of those files; hide empty columns."""
    if page.file.src_uri in HIDDEN:
        page.meta.setdefault("hide", HIDDEN[page.file.src_uri])
    if page.file.src_uri in FIRST:
        page.meta.setdefault("search", {"boost": 3})
    return Outside(ROOT).relink(markdown, origin=ORIGINS[page.file.src_uri], page=page.file.src_uri)


def on_page_content(html: str, **_: object) -> str:
    """Keep the two hyphens of an option on the line of its name; browsers break after a hyphen."""
    return CODE.sub(lambda match: DASHES.sub(r'<span class="dashes">\g<0></span>', match[0]), html)


def _expand(nav: object, uris: list[str]) -> None:
    """Replace each entry `FOLDER/*` of the navigation by the pages of that folder that the same list does not name."""
    if isinstance(nav, dict):
        for entries in nav.values():
            _expand(entries, uris)
    elif isinstance(nav, list):
        for entry in nav:
            _expand(entry, uris)
        listed = [*nav, *(uri for entry in nav if isinstance(entry, dict) for uri in entry.values())]
        for entry in [entry for entry in nav if isinstance(entry, str) and entry.endswith("/*")]:
            position = nav.index(entry)
            nav[position : position + 1] = [uri for uri in uris if uri.startswith(entry[:-1]) and uri not in listed]
