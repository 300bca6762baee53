"""Headless Chromium for tests of pages, and what it asked the network for."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

needs_chromium = [
    pytest.mark.browser,
    pytest.mark.skipif(not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium"),
]
"""Marks of a module that uses `chromium`."""


@contextmanager
def chromium(profile: Path, *, width: int = 1280, height: int = 800, scale: float = 1.0) -> Iterator[Any]:
    """A driver of a window of width x height CSS pixels; `scale`: device pixels per CSS pixel."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        f"--force-device-scale-factor={scale:g}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    started = webdriver.Chrome(options=options, service=service)
    started.set_script_timeout(120)  # seconds; a busy machine is slow
    try:
        yield started
    finally:
        started.quit()


def requested(driver: Any) -> list[str]:
    """URLs that the page asked for since the last call; those of the browser's own first page do not count."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [entry["request"]["url"] for entry in requests if not entry["documentURL"].startswith("chrome://")]
