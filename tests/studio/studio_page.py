"""The studio in a browser: a page that is driven as a user would."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

LIMIT = 120.0
"""Seconds after which a wait fails; a busy machine is slow."""


def load_service(*checkpoints: Path, **options: Any) -> Any:
    """A service for models on the CPU."""
    from rad.studio.fillers.loading import load_fillers
    from rad.studio.options import StudioOptions
    from rad.studio.service import Service

    chosen = StudioOptions(checkpoint=[str(each) for each in checkpoints], device="cpu", **options)
    return Service(load_fillers(chosen), chosen)


def until(condition: Callable[[], Any], limit: float = LIMIT) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not true within {limit:g} s")


def is_complete(download: Path) -> bool:
    """Whether a download is whole: just before Chromium gives it its name, it writes an empty file under that name."""
    return download.suffix != ".crdownload" and download.exists() and download.stat().st_size > 0


class Page:
    """A page of the studio in a browser; files that it saves go to the folder `downloads`."""

    def __init__(self, driver: Any, url: str, downloads: Path) -> None:
        self.driver, self.url, self.downloads = driver, url, downloads
        behaviour = {"behavior": "allow", "downloadPath": str(downloads)}
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        self.load()

    def load(self) -> None:
        self.driver.get(self.url)
        self.wait("document.body?.dataset.ready === 'true'")  # no body: it loads again

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: str) -> Any:
        """Wait for a JavaScript expression."""
        return until(lambda: self.run(f"return {condition}"))

    @property
    def view(self) -> str:
        return self.run("return document.body.dataset.view")

    def text(self, selector: str) -> str:
        return self.driver.find_element(By.CSS_SELECTOR, selector).text

    def click(self, selector: str, text: str = "") -> None:
        """Click the first visible element, whose text begins with `text`."""

        def clicked() -> bool:
            try:
                elements = self.driver.find_elements(By.CSS_SELECTOR, selector)
                shown = [each for each in elements if each.is_displayed() and each.text.startswith(text)]
                for each in shown[:1]:
                    each.click()
                return bool(shown)
            except StaleElementReferenceException:  # the page drew it anew
                return False

        until(clicked)

    def example(self, number: int = 1) -> None:
        """Open an example with its mask."""
        self.click(f".example:nth-child({number})")
        self.wait("document.body.dataset.view === 'editor'")
        self.wait("document.querySelector('.editor-toolbar [aria-label^=\"Clear\"]').disabled === false")

    def open(self, file: Path) -> None:
        """Open a file by the button of the start page."""
        self.driver.find_element(By.CSS_SELECTOR, "#welcome input[type=file]").send_keys(str(file))
        self.wait("document.body.dataset.view === 'editor'")

    def open_mask(self, file: Path) -> None:
        """Open a mask file by the button of the editor, whose input is not on the page."""
        self.run(
            "const click = HTMLInputElement.prototype.click;"
            "HTMLInputElement.prototype.click = function () {"
            " HTMLInputElement.prototype.click = click; this.id = 'mask-file'; document.body.append(this); }"
        )
        self.click("[aria-label^='Open a mask file']")
        field = self.driver.find_element(By.ID, "mask-file")
        field.send_keys(str(file))
        self.run("arguments[0].remove()", field)

    def enter(self, selector: str, value: object) -> None:
        """Type a value into a field."""
        field = self.driver.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(str(value))

    def steps(self, number: int) -> None:
        """Choose the effort in steps."""
        self.click("[data-value=steps]")
        self.enter("[aria-label=Steps]", number)

    def race(self, *methods: str, steps: int) -> None:
        """Start a race."""
        self.click("[data-value=race]")
        for box in self.driver.find_elements(By.CSS_SELECTOR, ".racer input"):
            if box.is_selected() != (box.get_attribute("value") in methods):
                self.run("arguments[0].click()", box)
        self.steps(steps)
        self.click("#fill")

    def lanes(self, *states: str) -> None:
        """Wait until the lanes have these states, in their order."""
        query = "Array.from(document.querySelectorAll('.lane'), (lane) => lane.dataset.state).join()"
        self.wait(f"{query} === '{','.join(states)}'")

    def download(self, text: str) -> Path:
        """Click a download of the result, and wait for its file."""
        before = set(self.downloads.iterdir())
        self.click("#result .button", text)
        return self.downloaded(before)

    def downloaded(self, before: set[Path]) -> Path:
        """The file that is new since `before`, when it is complete."""

        def new() -> Path | None:
            return next((each for each in self.downloads.iterdir() if each not in before and is_complete(each)), None)

        return until(new)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, selector: str, text: str = "", limit: int = 120) -> None:
        """Press Tab until an element has the focus."""
        script = (
            "const [s, t] = arguments, e = document.activeElement; return e.matches(s) && e.textContent.startsWith(t)"
        )
        for _ in range(limit):
            if self.run(script, selector, text):
                return
            self.press(Keys.TAB)
        raise AssertionError(f"Tab does not reach {selector} {text}")

    def stroke(self, points: Sequence[tuple[float, float]]) -> None:
        """Drag over the stage; points in fractions of its size."""
        stage = self.driver.find_element(By.CSS_SELECTOR, ".editor-stage")
        width, height = stage.size["width"], stage.size["height"]
        offsets = [(round((x - 0.5) * width), round((y - 0.5) * height)) for x, y in points]
        actions = ActionChains(self.driver).move_to_element_with_offset(stage, *offsets[0]).click_and_hold()
        for x, y in offsets[1:]:
            actions = actions.move_to_element_with_offset(stage, x, y)
        actions.release().perform()

    def errors(self) -> list[str]:
        """Messages of errors in the console, without those of a server that does not answer."""
        entries = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        return [message for message in entries if "ERR_CONNECTION" not in message and "Failed to fetch" not in message]
