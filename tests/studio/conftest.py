"""The page of the canvas editor, a studio, and a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import chromium
from tests.studio.editor_page import EditorPage, served
from tests.studio.studio_page import load_service


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EditorPage]:
    with served() as url, chromium(tmp_path_factory.mktemp("profile"), width=1280, height=900) as driver:
        yield EditorPage(driver, url)


@pytest.fixture
def editor(page: EditorPage) -> EditorPage:
    page.load()
    return page


@pytest.fixture(scope="module")
def server(adapter: Path) -> Iterator[str]:
    """The address of a studio with the small random model."""
    pytest.importorskip("fastapi")
    from tests.studio.server import serving

    with serving(load_service(adapter)) as url:
        yield url


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Any]:
    with chromium(tmp_path / "profile") as started:
        yield started
