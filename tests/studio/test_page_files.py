"""Files of the user on the page of the studio: of any kind, changed, unreadable, chosen again; a browser without storage."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By

from tests.browser import needs_chromium
from tests.conftest import random_image
from tests.studio.server import serving
from tests.studio.studio_page import Page, load_service

pytest.importorskip("fastapi")
pytestmark = [*needs_chromium, pytest.mark.slow]

ONLINE = "document.querySelector('.notice.offline').hidden"


@pytest.fixture
def page(driver: Any, server: str, tmp_path: Path) -> Page:
    (tmp_path / "downloads").mkdir()
    return Page(driver, server, tmp_path / "downloads")


def fill(page: Page) -> None:
    page.click("[data-value=editor]")
    page.stroke([(0.45, 0.5), (0.55, 0.5)])
    page.steps(1)
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result' || document.querySelector('.lane[data-state=lost]')")
    assert page.view == "result"


def drop(page: Page, *files: Path) -> None:
    """Drop files or folders of the disk on the middle of the page."""
    data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": 400, "y": 400, "data": data}
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)


def test_a_file_that_changes_or_vanishes_on_the_disk_is_still_filled(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    random_image(40, 60).save(file)
    page.open(file)
    random_image(40, 60, seed=9).save(file)
    os.utime(file, (2e9, 2e9))
    fill(page)
    file.unlink()
    fill(page)
    assert page.run(f"return {ONLINE}")


def test_a_file_that_cannot_be_read_is_named(page: Page, tmp_path: Path) -> None:
    names = ["photo.png", "photo-mask.png"]
    for name in names:
        random_image(40, 60).save(tmp_path / name)
    page.run(
        "const input = document.createElement('input'); Object.assign(input, {type: 'file', multiple: true, id: 'gone'});"
        "document.body.append(input)"
    )
    page.driver.find_element(By.ID, "gone").send_keys("\n".join(str(tmp_path / name) for name in names))
    random_image(40, 60).save(tmp_path / "open.png")
    page.open(tmp_path / "open.png")
    for name in names:
        (tmp_path / name).unlink()
    for index, words in enumerate(["Cannot open photo.png", "Cannot use photo-mask.png as a mask"]):
        page.run(
            "const data = new DataTransfer(); data.items.add(document.getElementById('gone').files[arguments[0]]);"
            "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}))",
            index,
        )
        page.wait(f"document.querySelector('#notices').textContent.includes('{words}: it cannot be read')")
    assert page.run(f"return {ONLINE}")
    assert "open.png" in page.text("#editor")


def test_folders_are_left_out_of_a_drop(page: Page, tmp_path: Path) -> None:
    folder, photo = tmp_path / "photographs", tmp_path / "photo.png"
    folder.mkdir()
    random_image(40, 60).save(photo)
    drop(page, folder)
    page.wait("document.querySelector('.notice.error')")
    assert page.text(".notice.error") == "A folder cannot be opened: drop an image file."
    assert page.run(f"return {ONLINE}")
    drop(page, folder, photo)
    page.wait("document.body.dataset.view === 'editor'")
    page.wait("document.querySelector('#notices').textContent.includes('Only photo.png was used')")


def test_a_webp_photograph_with_an_orientation_is_painted_upright(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    random_image(40, 60).save(tmp_path / "photo.webp", lossless=True, exif=exif)
    page.open(tmp_path / "photo.webp")
    assert "40 × 60" in page.text("#editor .editor-status")
    fill(page)
    with Image.open(page.download("Download PNG")) as result, Image.open(page.download("Mask")) as mask:
        assert result.size == mask.size == (40, 60)
        hole = np.argwhere(np.asarray(mask.convert("L")))
    assert np.abs(hole.mean(axis=0) - (30, 20)).max() < 2  # the stroke is in the middle


def test_the_same_file_is_chosen_twice(page: Page, tmp_path: Path) -> None:
    random_image(40, 60).save(tmp_path / "photo.png")
    page.open(tmp_path / "photo.png")
    page.stroke([(0.45, 0.5), (0.55, 0.5)])
    page.click("#new")
    page.open(tmp_path / "photo.png")
    page.wait("document.querySelector('#editor').textContent.includes('no hole yet')")


def test_a_browser_that_keeps_no_data_uses_the_token_of_the_address(driver: Any, adapter: Path, tmp_path: Path) -> None:
    blocked = (
        "const refuse = () => { throw new DOMException('denied', 'SecurityError'); };"
        "for (const name of ['sessionStorage', 'localStorage']) Object.defineProperty(window, name, {get: refuse});"
        "IDBFactory.prototype.open = refuse;"
    )
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": blocked})
    with serving(load_service(adapter), token="a-secret-token") as url:
        page = Page(driver, f"{url}#token=a-secret-token", tmp_path)
        page.example()
        assert "token" not in driver.current_url
        page.wait("document.querySelector('#notices').textContent.includes('cannot keep your work')")
        assert "(it blocks the data of this site)" in page.text("#notices")
        page.steps(1)
        page.click("#fill")
        page.wait("document.body.dataset.view === 'result'")
