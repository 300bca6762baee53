"""The built site: complete, without dead links, and without requests to other hosts."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from rad.__main__ import COMMANDS
from rad.methods import METHODS
from tests.browser import chromium, needs_chromium, requested
from tests.docs_site import conftest  # noqa: F401
from tests.docs_site.html_page import read

pytest.importorskip("mkdocs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with --strict: a warning is an error. With --quiet, warnings would not count."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), page
    assert not (site / "scripts").exists()


def test_every_command_has_a_page_with_all_options_and_their_defaults(site: Path) -> None:
    from reference.commands import TRAIN, parser_of, settings  # pyright: ignore[reportMissingImports]

    for command in COMMANDS:
        rows = read(site / f"reference/commands/{command}.html").rows
        parser = parser_of(command, *(TRAIN if command == "train" else ()))
        actions = [action for action in settings(parser) if command != "train" or "." not in action.dest]
        for action in actions:
            if action.option_strings and action.dest not in ("trainer", "model", "data"):
                name = max((text for text in action.option_strings if not text.endswith("+")), key=len)
                cells = rows[name.removeprefix("--").lower()]
                assert cells[0].split()[0] == name
                if isinstance(action.default, int | float) and not isinstance(action.default, bool):
                    assert cells[2] == str(action.default), (command, name)
                assert (cells[2] == "required") == bool(action.required), (command, name)


def test_every_key_of_a_configuration_has_its_type_and_default(site: Path) -> None:
    from reference.commands import TRAIN, parser_of, settings  # pyright: ignore[reportMissingImports]

    rows = read(site / "reference/keys.html").rows
    keys = [action for action in settings(parser_of("train", *TRAIN)) if "." in action.dest]
    assert len(keys) > 100
    for action in keys:
        if type(action).__name__ == "ActionTypeHint" and action.default != argparse.SUPPRESS:
            assert rows[action.dest][0] == action.dest
            if isinstance(action.default, str):
                assert rows[action.dest][2] == action.default
    for key, default in {"data.batch_size": "8", "trainer.gradient_clip_val": "1.0", "model.lora.rank": "16"}.items():
        assert rows[key][2] == default
    for name in ("rad.training.EMA.decay", "rad.training.Checkpoint.save_top_k", "rad.masks.Perlin.area_range"):
        assert name in rows


def test_every_method_and_setting_is_listed_with_its_default(site: Path) -> None:
    content = read(site / "reference/methods.html")
    for name, kind in METHODS.items():
        assert name in content.ids
        for item in fields(kind):
            default = str(item.default).lower() if isinstance(item.default, bool) else str(item.default)
            assert content.rows[f"{name}.{item.name}"][2] == default


def test_every_public_name_is_documented(site: Path) -> None:
    from reference.api import packages  # pyright: ignore[reportMissingImports]

    assert {"rad.inpainting", "rad.methods", "rad.training", "rad.runtime", "rad.pipelines"} <= set(packages())
    for package in packages():
        ids = read(site / f"reference/api/{package.removeprefix('rad.')}.html").ids
        for name in import_module(package).__all__:
            assert f"{package}.{name}" in ids or name == "__version__", f"{package}.{name}"


def test_every_link_inside_the_site_leads_to_a_page_and_a_heading(site: Path, pages: list[Path]) -> None:
    for page in pages:
        for link in read(page).links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in read(target).ids, f"{page.relative_to(site)}: {link}"


def test_no_page_loads_anything_from_another_host(site: Path, pages: list[Path]) -> None:
    for page in pages:
        content = read(page)
        assert not [load for load in content.loads if re.match(r"\s*(https?:)?//", load)], page
        assert "mermaid" not in content.classes  # the theme would load a library for it
    for style in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import\s+)[\"']?([^\"')\s;]+)", style.read_text(encoding="utf-8"))
        assert not [address for address in addresses if re.match(r"(https?:)?//", address)], style


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object, **_: object) -> None:
            super().__init__(*arguments, directory=str(site))  # pyright: ignore[reportArgumentType]

        def log_message(self, format: str, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class TestBrowser:
    pytestmark = needs_chromium

    def test_pages_and_search_ask_no_other_host(self, address: str, tmp_path: Path) -> None:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support.wait import WebDriverWait

        with chromium(tmp_path) as driver:
            driver.get(f"{address}/index.html")
            assert driver.find_element(By.CSS_SELECTOR, "article p").size["width"] <= 800  # a line of text
            for page in ("index", "tutorials/fine-tune", "reference/keys", "reference/api/inpainting", "models/photos"):
                driver.get(f"{address}/{page}.html")
            driver.find_element(By.CSS_SELECTOR, "input.md-search__input").send_keys("repaint jump_length")
            results = ".md-search-result__item a"
            WebDriverWait(driver, 120).until(lambda _: driver.find_elements(By.CSS_SELECTOR, results))
            found = [link.get_attribute("href") for link in driver.find_elements(By.CSS_SELECTOR, results)]
            assert any("reference/methods.html" in str(link) for link in found)
            addresses = requested(driver)
        assert len(addresses) > 10
        assert not [url for url in addresses if not url.startswith((address, "data:", "blob:"))]

    def test_no_page_is_wider_than_a_phone(self, address: str, tmp_path: Path) -> None:
        with chromium(tmp_path, width=500) as driver:  # headless Chromium has no narrower window
            for page in ("index", "reference/methods", "reference/commands/sample", "reference/api/sampling"):
                driver.get(f"{address}/{page}.html")
                assert driver.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0, page
