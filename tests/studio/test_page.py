"""The page of the studio: fill, race, compare, and what happens when the server goes away."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from rad.__main__ import main
from tests.browser import needs_chromium, requested
from tests.conftest import random_image
from tests.studio.server import serving
from tests.studio.studio_page import Page, load_service, until

pytest.importorskip("fastapi")
pytestmark = [*needs_chromium, pytest.mark.slow]


@pytest.fixture
def page(driver: Any, server: str, tmp_path: Path) -> Page:
    (tmp_path / "downloads").mkdir()
    return Page(driver, server, tmp_path / "downloads")


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def test_an_example_is_filled_without_foreign_requests(page: Page) -> None:
    requested(page.driver)
    page.load()
    page.example()
    page.steps(3)
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    result, mask, source = (pixels(page.download(name)) for name in ("Download PNG", "Mask", "Input"))
    known = mask[..., 0] == 0
    assert 0 < (~known).mean() < 0.5
    assert (result[known] == source[known]).all()
    assert (result[~known] != source[~known]).any()
    hosts = {urlsplit(url).netloc for url in requested(page.driver) if not url.startswith(("blob:", "data:"))}
    assert hosts == {urlsplit(page.url).netloc}
    assert page.errors() == []


def test_a_race_ends_and_rad_sample_repeats_its_files(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    page.example(2)
    page.race("rad", "repaint", "ddnm", steps=4)
    page.lanes("done", "done", "done")
    names = [each.text for each in page.driver.find_elements(By.CSS_SELECTOR, ".lane h3")]
    places = [each.text for each in page.driver.find_elements(By.CSS_SELECTOR, ".lane .badge")]
    assert names == ["RAD", "RePaint", "DDNM"]
    assert sorted(places) == ["1st", "2nd", "3rd"]
    assert page.run("return document.querySelectorAll('.history li').length") == 3
    page.click(".lane .button", "Compare")
    page.wait("document.body.dataset.view === 'result'")
    saved = [page.download(name) for name in ("Mask", "Input")]
    assert {each.name for each in saved} == {"cat-mask.png", "cat.png"}
    monkeypatch.chdir(page.downloads)
    for name in ("RAD", "RePaint", "DDNM"):
        page.click("#result .thumbnail", name)
        page.wait(f"document.querySelector('#result .thumbnail[aria-pressed=true]').textContent === '{name}'")
        result, settings = page.download("Download PNG"), page.download("Settings")
        assert result.name == f"cat-{name.lower()}.png"
        assert f"rad sample --config {settings.name}" == page.run(
            "return document.querySelector('.command code').textContent"
        )
        expected = pixels(result)
        result.unlink()
        assert main(["sample", "--config", settings.name]) == 0
        assert (pixels(result) == expected).all()
        result.unlink()
    assert page.errors() == []


def test_methods_that_start_from_noise_alone_join_a_race_of_a_model_that_prefers_pyramid(
    driver: Any, carrying: Callable[[object], Path], tmp_path: Path
) -> None:
    (tmp_path / "downloads").mkdir()
    with serving(load_service(carrying({"size_policy": "pyramid"}))) as url:
        page = Page(driver, url, tmp_path / "downloads")
        page.example()
        assert page.run("return document.querySelector('.settings details.advanced select').value") == "pyramid"
        page.race("rad", "biharmonic", steps=2)
        page.lanes("done", "done")


def test_lanes_that_end_later_can_be_compared(page: Page) -> None:
    page.example(2)
    page.race("rad", "ddnm", "mean", steps=40)
    page.wait("document.querySelector('.lane[data-state=done]')")
    page.click(".lane[data-state=done] .frame")
    page.wait("document.body.dataset.view === 'result'")
    page.lanes("done", "done", "done")
    choices = "Array.from(document.querySelectorAll('#compare-with option'), (each) => each.textContent)"
    page.wait(f"{choices}.length === 3")
    assert page.run("return document.querySelectorAll('#result .thumbnail').length") == 3
    for number, name in enumerate(page.run(f"return {choices}")):
        page.run(
            "const field = document.querySelector('#compare-with');"
            "field.selectedIndex = arguments[0]; field.dispatchEvent(new Event('change'))",
            number,
        )
        page.wait(f"document.querySelector('.compare .tag.left').textContent === '{name}'")
    assert name in ("RAD", "DDNM")


def test_a_slow_image_does_not_replace_a_later_one(page: Page) -> None:
    page.example(2)
    page.race("rad", "mean", steps=2)
    page.lanes("done", "done")
    page.click(".lane .button", "Compare")
    page.wait("document.body.dataset.view === 'result'")
    page.click("#result .thumbnail", "RAD")
    page.wait("document.querySelector('.compare .tag.right').textContent === 'RAD'")
    shown = "return document.querySelector('.compare canvas').toDataURL()"
    page.run("document.querySelector('#result .thumbnail:last-child').click()")
    page.wait("document.querySelector('.compare .tag.right').textContent !== 'RAD'")
    time.sleep(1)
    expected = page.run(shown)
    page.run(
        "const decode = window.createImageBitmap; window.late = 0; window.slow = false;"
        "window.createImageBitmap = async (...given) => {"
        " if (!window.slow) return decode(...given);"
        " await new Promise((resolve) => setTimeout(resolve, 1000));"
        " try { return await decode(...given); } finally { window.late += 1; } }"
    )
    page.run("window.slow = true; document.querySelector('#result .thumbnail:first-child').click()")
    page.wait("document.querySelector('#result .thumbnail[aria-pressed=true]').textContent === 'RAD'")
    page.run("window.slow = false; document.querySelector('#result .thumbnail:last-child').click()")
    page.wait("window.late >= 2")
    time.sleep(1)
    assert page.run(shown) == expected


def test_a_cancelled_lane_stops_and_runs_again(page: Page) -> None:
    page.example()
    page.race("rad", "repaint", steps=900)
    page.wait("document.querySelectorAll('.lane[data-state=running]').length === 2")
    page.click(".lane .button", "Cancel")
    page.lanes("cancelled", "running")
    page.click("#fill", "Cancel the race")
    page.lanes("cancelled", "cancelled")
    assert "Race ended" in page.text("#progress h2")
    page.click(".lane .button", "Run again")
    page.lanes("running", "cancelled")
    page.click("#fill")
    page.lanes("cancelled", "cancelled")


def test_two_tabs_do_not_disturb_each_other(page: Page, server: str) -> None:
    page.example(1)
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    other = Page(page.driver, server, page.downloads)
    second = page.driver.current_window_handle
    other.driver.switch_to.window(first)
    page.steps(2)
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    page.driver.switch_to.window(second)
    assert other.view in ("editor", "welcome")
    assert not other.run("return document.querySelectorAll('.history li').length")


def test_a_stopped_server_loses_no_image_and_lanes_run_again(driver: Any, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    service = load_service(adapter)
    with serving(service) as url:
        page = Page(driver, url, tmp_path / "downloads")
        page.example()
        page.race("rad", "ddnm", steps=900)
        page.wait("document.querySelectorAll('.lane[data-state=running]').length === 2")
    page.wait("document.querySelectorAll('.lane[data-state=running]').length === 0")
    page.wait("document.querySelector('.notice.offline').hidden === false")
    assert "kept in this browser" in page.text(".notice.offline")
    page.click("[data-value=editor]")
    assert "hole" in page.text("#editor")
    with serving(load_service(adapter), port=urlsplit(url).port or 0):
        page.wait("document.querySelector('.notice.offline').hidden")
        page.click("[data-value=progress]")
        page.steps(2)
        page.click(".lane .button", "Run again")
        page.wait("document.querySelectorAll('.lane[data-state=running]').length === 1")
        page.load()
        page.wait("document.body.dataset.view === 'editor'")
        assert "hole" in page.text("#editor")
        page.click("[data-value=fill]")
        page.steps(2)
        page.click("#fill")
        page.wait("document.body.dataset.view === 'result'")


def test_from_start_to_download_by_keyboard(page: Page) -> None:
    page.tab_to(".example")
    page.press(Keys.ENTER)
    page.wait("document.body.dataset.view === 'editor'")
    page.wait("document.querySelector('#fill').disabled === false")
    page.wait("document.querySelector('.editor-toolbar [aria-label^=\"Clear\"]').disabled === false")
    page.tab_to("#panel [data-value=preset]")
    page.press(Keys.ARROW_RIGHT)
    page.tab_to("[aria-label=Steps]")
    page.press(Keys.CONTROL + "a" + Keys.NULL, "2", Keys.ENTER)
    page.wait("document.body.dataset.view === 'result'")
    page.tab_to("#views [data-value=result]")
    page.tab_to(".range")
    page.press(Keys.HOME)
    assert page.run("return document.querySelector('.compare .line').style.left") == "0%"
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.run("return document.querySelector('.compare .line').style.left") == "2%"
    page.tab_to("#result .button", "Download PNG")
    before = set(page.downloads.iterdir())
    page.press(Keys.ENTER)
    assert page.downloaded(before).name == "astronaut-rad.png"


def test_the_original_is_shown_while_o_is_held(page: Page) -> None:
    page.example()
    page.steps(1)
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    clip = "return document.querySelectorAll('.compare canvas')[1].style.clipPath"
    half = page.run(clip)
    page.run("document.body.dispatchEvent(new KeyboardEvent('keydown', {key: 'o', bubbles: true}))")
    assert page.run(clip) != half
    assert "0%" in page.run(clip)
    page.run("document.body.dispatchEvent(new KeyboardEvent('keyup', {key: 'o', bubbles: true}))")
    assert page.run(clip) == half


def test_a_winner_becomes_the_image(page: Page) -> None:
    page.example(2)
    page.race("rad", "ddnm", steps=2)
    page.lanes("done", "done")
    page.click(".lane .button", "Use this")
    page.wait("document.body.dataset.view === 'editor'")
    page.wait("document.querySelector('#editor').textContent.includes('cat-filled.png')")
    page.click("#fill")
    page.wait("document.querySelector('.notice.error')")
    assert "mask is empty" in page.text(".notice.error")
    page.stroke([(0.45, 0.5), (0.55, 0.5)])
    page.click("[data-value=fill]")
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    assert page.download("Input").name == "cat-filled.png"


def test_a_soft_mask_stays_soft(page: Page, tmp_path: Path) -> None:
    random_image(40, 60).save(tmp_path / "noise.png")
    page.open(tmp_path / "noise.png")
    page.run(
        "const soft = document.querySelectorAll('.editor-toolbar input[type=range]')[1];"
        "soft.value = soft.max; soft.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    page.stroke([(0.45, 0.5), (0.55, 0.5)])
    page.wait("!document.querySelector('.settings .note.box').hidden")
    page.steps(2)
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    mask = pixels(page.download("Mask"))
    assert ((mask > 0) & (mask < 255)).any()


def test_a_hostile_name_is_text(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "<img src=x onerror=document.title='owned'>.png"
    random_image(32, 32).save(file)
    page.open(file)
    page.stroke([(0.45, 0.5), (0.55, 0.5)])
    page.steps(1)
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    assert page.driver.title == "rad studio"
    assert page.run("return document.querySelector('img[src=x]')") is None
    assert page.download("Input").name.endswith(".png")
    assert page.errors() == []


def test_zoom_is_offered_for_results_of_the_image_that_is_open(page: Page, tmp_path: Path) -> None:
    for name, size in (("a", (40, 60)), ("b", (64, 32))):
        random_image(*size).save(tmp_path / f"{name}.png")
    hidden = "document.querySelector('[aria-label^=\"Show the result in the editor\"]').hidden"
    page.open(tmp_path / "a.png")
    page.stroke([(0.45, 0.5), (0.55, 0.5)])
    page.steps(1)
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    assert not page.run(f"return {hidden}")
    page.click("#new")
    page.open(tmp_path / "b.png")
    page.click("#views [data-value=result]")
    page.wait(hidden)


def test_a_turned_webp_is_upright_in_the_slider(page: Page, tmp_path: Path) -> None:
    """Chromium does not apply the orientation of WebP files; the server does."""
    turned, exif = random_image(40, 60), Image.Exif()
    exif[0x0112] = 3  # by 180 degrees
    turned.save(tmp_path / "a.webp", lossless=True, exif=exif)
    page.open(tmp_path / "a.webp")
    page.stroke([(0.45, 0.5), (0.55, 0.5)])
    page.steps(1)
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    result, mask = (pixels(page.download(name)) for name in ("Download PNG", "Mask"))
    upright = np.asarray(turned)[::-1, ::-1]
    known = mask[..., 0] == 0
    assert (result[known] == upright[known]).all()
    left = page.run(
        "const canvas = document.querySelectorAll('.compare canvas')[1];"
        "return [canvas.width, ...canvas.getContext('2d').getImageData(59, 0, 1, 1).data.slice(0, 3)]"
    )
    assert left == [60, *upright[0, 59].tolist()], "the slider shows the image upright too"


def test_a_number_that_is_still_being_typed_counts(page: Page, tmp_path: Path) -> None:
    random_image(40, 60).save(tmp_path / "a.png")
    page.open(tmp_path / "a.png")
    page.steps(1)
    page.click("[aria-label='Extend the image']")
    page.click(".editor-popover .editor-field:nth-child(1) input")
    page.driver.switch_to.active_element.send_keys("8", Keys.CONTROL + Keys.ENTER)
    page.wait("document.body.dataset.view === 'result'")
    assert pixels(page.download("Download PNG")).shape == (40, 68, 3)


def test_a_model_that_cannot_be_chosen_leaves_the_settings(
    driver: Any, adapter: Path, base: Path, tmp_path: Path
) -> None:
    (tmp_path / "downloads").mkdir()
    chosen = "document.querySelector('.settings select')"
    with serving(load_service(adapter, base)) as url:
        page = Page(driver, url, tmp_path / "downloads")
        first, other = page.run(f"return Array.from({chosen}.options, (each) => each.value)")
        methods = page.run("return document.querySelectorAll('.settings select')[1].length")
    page.run(f"{chosen}.value = arguments[0]; {chosen}.dispatchEvent(new Event('change'))", other)
    page.wait("document.querySelector('.notice.error')")
    assert f"The model {other} was not chosen" in page.text(".notice.error")
    assert page.run(f"return {chosen}.value") == first
    assert page.run("return document.querySelectorAll('.settings select')[1].length") == methods


def test_wrong_numbers_are_marked_before_anything_starts(page: Page) -> None:
    page.example()
    page.steps(0)
    page.click("#fill")
    page.wait("document.querySelector('.notice.error')")
    assert "Check the marked number" in page.text(".notice.error")
    assert page.run("return document.activeElement.getAttribute('aria-label')") == "Steps"
    assert page.view == "editor"


def test_the_token_of_the_address_is_sent_and_hidden(driver: Any, adapter: Path, tmp_path: Path) -> None:
    with serving(load_service(adapter), token="a-secret-token") as url:
        driver.get(url)
        until(lambda: driver.find_elements(By.CSS_SELECTOR, ".notice.error"))
        assert "This server needs a token" in driver.find_element(By.CSS_SELECTOR, ".notice.error").text
        page = Page(driver, f"{url}#token=a-secret-token", tmp_path)  # in the same tab
        page.example()
        assert "token" not in driver.current_url
        page.steps(1)
        page.click("#fill")
        page.wait("document.body.dataset.view === 'result'")


def test_a_solver_brings_its_spacing_and_eta(page: Page) -> None:
    page.example()
    page.steps(2)
    page.click(".advanced summary")
    fields = "document.querySelectorAll('[data-method=rad] .input')"
    shown = f"return Array.from({fields}, (each) => each.value)"
    assert page.run(shown) == ["dpm++2m", "logsnr", "0"]
    choose = (
        f"const field = {fields}[arguments[0]]; field.value = arguments[1]; field.dispatchEvent(new Event('change'))"
    )
    page.run(choose, 0, "ddpm")
    assert page.run(shown) == ["ddpm", "even", "1"]
    page.run(choose, 1, "logsnr")
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    settings = json.loads(page.download("Settings").read_text())
    assert [settings[name] for name in ("solver", "spacing", "eta")] == ["ddpm", "logsnr", 1]
    page.run(choose, 0, "dpm++2m")
    assert page.run(shown) == ["dpm++2m", "logsnr", "0"]


def test_mask_files_keep_their_grey_values(page: Page, tmp_path: Path) -> None:
    random_image(40, 60).save(tmp_path / "noise.png")
    page.open(tmp_path / "noise.png")
    grey = np.zeros((40, 60), np.uint8)
    grey[10:20, 10:40] = np.linspace(20, 255, 30)
    Image.fromarray(grey).save(tmp_path / "soft.png")
    Image.fromarray(np.uint8(grey > 99)).save(tmp_path / "labels.png")
    page.open_mask(tmp_path / "soft.png")
    page.wait("!document.querySelector('.settings .note.box').hidden")
    before = set(page.downloads.iterdir())
    page.click("[aria-label^='Download the mask']")
    assert (pixels(page.downloaded(before))[..., 0] == grey).all()
    page.open_mask(tmp_path / "labels.png")
    page.wait("document.querySelector('.settings .note.box').hidden")
    assert "Mask: its two values, 0 and 1, are black and white." in page.text("#notices")
    Image.fromarray(np.uint8(255 * (grey < 99))).save(tmp_path / "inverted.png")
    page.open_mask(tmp_path / "inverted.png")
    page.wait("document.querySelector('#notices').textContent.includes('press I to invert it')")
    grey[:9].tofile(tmp_path / "damaged.png")
    page.open_mask(tmp_path / "damaged.png")
    page.wait("document.querySelector('.notice.error')")
    assert page.text(".notice.error") == "Cannot use damaged.png as a mask: cannot read the mask: not an image."


def test_keys_of_the_editor_rest_while_it_is_hidden(page: Page) -> None:
    page.example()
    page.steps(1)
    page.click("#fill")
    page.wait("document.body.dataset.view === 'result'")
    page.run("document.activeElement.blur()")
    page.press(Keys.DELETE, "i")
    assert page.view == "result"
    page.click("[data-value=editor]")
    page.run("document.activeElement.blur()")
    page.press(Keys.DELETE)
    assert "no hole yet" in page.text("#editor")


def test_an_image_above_the_limit_is_named_when_it_is_opened(driver: Any, adapter: Path, tmp_path: Path) -> None:
    random_image(64, 64).save(tmp_path / "large.png")
    with serving(load_service(adapter, max_megapixels=0.004)) as url:
        page = Page(driver, url, tmp_path)
        page.open(tmp_path / "large.png")
        page.wait("document.querySelector('.notice.error')")
        assert "this server takes up to 0.004 megapixels" in page.text(".notice.error")


def test_the_page_starts_while_another_tab_blocks_its_storage(page: Page, server: str) -> None:
    page.run(
        "indexedDB.open('rad-studio', 1).onsuccess = (event) => {"
        " window.kept = event.target.result; indexedDB.deleteDatabase('rad-studio'); }"
    )
    page.wait("window.kept")
    page.driver.switch_to.new_window("tab")
    other = Page(page.driver, server, page.downloads)
    assert "The work of your last visit cannot be read" in other.text("#notices")
    other.example()
    assert other.text("#fill") == "Fill"


def test_a_server_that_is_not_ready_is_asked_again(page: Page) -> None:
    script = (
        "const ask = window.fetch; let calls = 0;"
        "window.fetch = (path, options) => path !== 'v1/models' ? ask(path, options)"
        " : ++calls === 1 ? Promise.reject(new TypeError('no network'))"
        " : calls === 2 ? Promise.resolve(new Response('', {status: 503})) : ask(path, options);"
    )
    page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    page.driver.get(page.url)
    page.wait("document.querySelector('.notice.offline')?.hidden === false")
    page.wait("document.body.dataset.ready === 'true'")
    assert page.run("return document.querySelector('.notice.offline').hidden")
    page.example()


def test_the_start_page_is_a_click_away_and_images_come_back(page: Page) -> None:
    page.example(1)
    hole = page.text("#editor .editor-status")
    page.click("#new")
    assert page.view == "welcome"
    assert not page.driver.find_element(By.ID, "fill").is_enabled()
    page.click("#welcome .button", "Back to astronaut.png")
    assert page.view == "editor"
    page.click("#home")
    page.example(2)
    page.wait("document.querySelector('#editor').textContent.includes('cat.png')")
    page.click("#home")
    page.click("#welcome .button", "Reopen astronaut.png")
    page.wait("document.body.dataset.view === 'editor'")
    assert set(hole.splitlines()) <= set(page.text("#editor .editor-status").splitlines())
    page.click("#home")
    assert "Reopen cat.png" in page.text("#welcome")


def test_a_dropped_file_is_a_mask_by_its_name(page: Page, tmp_path: Path) -> None:
    drop = (
        "const canvas = new OffscreenCanvas(64, 48), context = canvas.getContext('2d');"
        "context.fillRect(0, 0, 64, 48); context.fillStyle = arguments[2]; context.fillRect(8, 8, 16, 16);"
        "canvas.convertToBlob().then((blob) => { const data = new DataTransfer();"
        " data.items.add(new File([blob], arguments[0], {type: 'image/png'}));"
        " document.querySelector(arguments[1]).dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true})); })"
    )
    page.run(drop, "scene.png", "#welcome", "teal")
    page.wait("document.querySelector('#editor').textContent.includes('scene.png')")
    assert "no hole yet" in page.text("#editor")
    page.run(drop, "scene-mask.png", "#editor", "white")
    page.wait("!document.querySelector('#editor').textContent.includes('no hole yet')")
    assert "scene.png" in page.text("#editor")


def test_steps_of_a_race_are_limited_by_its_methods(page: Page) -> None:
    page.example()
    page.click("[data-value=race]")
    page.click("[data-value=steps]")
    limit = "return Number(document.querySelector('[aria-label=Steps]').max)"
    methods = page.run("return fetch('v1/methods?model=adapter').then((answer) => answer.json())")["methods"]
    most = {each["name"]: each["max_steps"] for each in methods if each["max_steps"]}
    for box in page.driver.find_elements(By.CSS_SELECTOR, ".racer input:checked"):
        page.run("arguments[0].click()", box)
    for name in (max(most, key=lambda name: most[name]), min(most, key=lambda name: most[name])):
        page.run("arguments[0].click()", page.driver.find_element(By.CSS_SELECTOR, f".racer [value={name}]"))
        assert page.run(limit) == min(most[name], 1000)


def test_an_emptied_brush_size_keeps_the_last_one(page: Page) -> None:
    page.example()
    field = page.driver.find_element(By.CSS_SELECTOR, ".editor-number")
    size = field.get_attribute("value")
    page.press(Keys.ESCAPE)
    field.click()
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.BACKSPACE, Keys.TAB)
    assert field.get_attribute("value") == size
