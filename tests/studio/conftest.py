"""The page of the canvas editor, for its tests."""

from collections.abc import Iterator

import pytest

from tests.browser import chromium
from tests.studio.editor_page import EditorPage, served


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EditorPage]:
    with served() as url, chromium(tmp_path_factory.mktemp("profile"), width=1280, height=900) as driver:
        driver.set_script_timeout(120)
        yield EditorPage(driver, url)


@pytest.fixture
def editor(page: EditorPage) -> EditorPage:
    page.load()
    return page
