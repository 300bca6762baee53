"""The report in a browser without a network: every image is drawn, heads of columns sort, nothing is asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rad.evaluation.report import write_report
from tests.browser import chromium, needs_chromium, requested
from tests.evaluation.test_report import METHODS, change, example

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), width=1280, height=900) as started:
        yield started


@pytest.fixture
def page(driver: Any, tmp_path: Path) -> Path:
    """A report with two mask sets, a group apart, a value that is missing and a name with a script, opened."""
    many: dict[str, Any] = METHODS | {
        f"extra{number}@{number}": (10.0 + number / 7, number, number / 3) for number in range(9, 12)
    }
    comparison = change(example(tmp_path / "data", masks=["wide", "half"], size=32, **many), "mean", group="apart")
    comparison = change(comparison, "good@20", values={})
    comparison.results[0].values["psnr"] = float("inf")
    comparison.notes.append("<script>document.title = 'broken'</script>")
    return write_report(comparison, tmp_path)[1]


def test_the_page_is_complete_and_loads_nothing(driver: Any, page: Path) -> None:
    driver.get_log("performance")
    driver.get_log("browser")
    driver.get(page.as_uri())
    widths = driver.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert len(widths) > 50
    assert set(widths) == {32}
    assert driver.title == "Comparison of inpainting methods"
    asked = requested(driver)
    assert page.as_uri() in asked
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert driver.get_log("browser") == []
    shot = page.with_name("report.png")
    assert driver.save_screenshot(str(shot))
    assert shot.stat().st_size > 10_000


def test_only_boxes_scroll_sideways(driver: Any, page: Path) -> None:
    driver.get(page.as_uri())
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    outside = driver.execute_script(
        "return [...document.querySelectorAll('body *')].filter((element) => !element.closest('.scroll, svg')"
        " && element.getBoundingClientRect().right > innerWidth).map((element) => element.outerHTML.slice(0, 80))"
    )
    assert outside == []


@pytest.mark.slow
def test_heads_of_columns_sort(driver: Any, page: Path) -> None:
    driver.get(page.as_uri())
    heads = driver.find_elements("css selector", ".sortable:first-of-type thead button")
    titles = [head.text.split(" ")[0] for head in heads]
    start = "document.querySelector('.sortable')"

    def values(column: int, body: int) -> list[str]:
        cells = f"[...{start}.tBodies[{body}].querySelectorAll('tr:not(.group)')].map((row) => row.cells[{column}].dataset.value)"
        return driver.execute_script(f"return {cells}")

    assert titles[:6] == ["method", "NFE", "VJP", "seconds", "images", "PSNR"]
    assert values(5, 0)[-1] == ""
    assert [float(value) for value in values(5, 0)[:-1]] == sorted(map(float, values(5, 0)[:-1]), reverse=True)
    for title in ("seconds", "NFE", "LPIPS"):
        column = titles.index(title)
        for direction in ("ascending", "descending"):
            heads[column].click()
            sorts = driver.execute_script(f"return [...{start}.tHead.rows[0].cells].map((head) => head.ariaSort)")
            assert [index for index, sort in enumerate(sorts) if sort != "none"] == [column]
            assert sorts[column] == direction
            shown = [float(value) for value in values(column, 0) if value]
            assert shown == sorted(shown, reverse=direction == "descending")
            assert len(set(shown)) > 4
            assert "" not in values(column, 0)[:-1]  # what is not known stays last
    assert values(0, 1) == ["mean"]  # its group stays apart
    heads[0].send_keys("\n")
    assert values(0, 0) == sorted(values(0, 0))
    other = driver.execute_script("return document.querySelectorAll('.sortable')[1].tHead.rows[0].cells[5].ariaSort")
    assert other == "descending"  # as it was
