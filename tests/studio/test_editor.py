"""The canvas editor of the page in headless Chromium: strokes, selections, keys and fingers, against NumPy."""

import base64
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.measure import label

from tests.browser import chromium, needs_chromium
from tests.studio.editor_page import EditorPage, Points, in_image, photo, png, served, whole

pytestmark = [*needs_chromium, pytest.mark.slow]


def distance(shape: tuple[int, int], points: Points) -> NDArray[np.float64]:
    """Distance of each pixel centre from a path."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    nearest = np.full(shape, np.inf)
    for (ax, ay), (bx, by) in zip(points, points[1:] or points, strict=False):
        squared = (bx - ax) ** 2 + (by - ay) ** 2
        along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / squared, 0, 1) if squared else 0 * x
        nearest = np.minimum(nearest, np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
    return nearest


def assert_stroke(page: EditorPage, shape: tuple[int, int], points: Points, radius: float) -> None:
    """The mask is that of one hard stroke; pixels within rounding of the radius are free."""
    mask = page.mask()
    assert mask.shape == shape
    away = distance(shape, points) - radius
    sure = np.abs(away) > 1e-6
    assert sure.mean() > 0.99
    assert np.array_equal(mask[sure], np.where(away <= 0, 255, 0)[sure])


def stroke_somewhere(page: EditorPage, shape: tuple[int, int], size: int = 9) -> None:
    """Paints across the visible part of the image, and checks every pixel."""
    page.settings(size=size, hardness=1)
    height, width = shape
    view = page.view()
    places = page.on_page([(width * 0.2, height * 0.3), (width * 0.7, height * 0.45), (width * 0.4, height * 0.8)])
    low, high = view["left"] + 5, view["left"] + view["width"] - 5
    up, down = view["top"] + 5, view["top"] + view["height"] - 5
    places = whole([(min(high, max(low, x)), min(down, max(up, y))) for x, y in places])
    page.drag(places)
    assert_stroke(page, shape, in_image(page, places), size / 2)


@pytest.mark.parametrize("shape", [(97, 53), (40, 300)])
def test_a_stroke_fills_the_pixels_of_its_path_at_any_zoom(editor: EditorPage, shape: tuple[int, int]) -> None:
    assert editor.open(png(photo(*shape)))
    stroke_somewhere(editor, shape)
    editor.run("editor.painter.clear()")
    (place,) = whole(editor.on_page([(shape[1] * 0.5, shape[0] * 0.4)]))
    before = in_image(editor, [place])[0]
    editor.mouse("Wheel", *place, deltaX=0, deltaY=-300)
    editor.frame()
    assert np.allclose(in_image(editor, [place])[0], before, atol=0.2)
    stroke_somewhere(editor, shape)
    editor.run("editor.painter.clear()")
    zoomed = editor.view()
    editor.drag([(600.0, 400.0), (571.0, 433.0)], button="middle")
    panned = editor.view()
    assert (panned["x"] - zoomed["x"], panned["y"] - zoomed["y"]) == (-29, 33)
    assert editor.is_empty()
    stroke_somewhere(editor, shape)


def test_a_stroke_with_two_device_pixels_per_css_pixel(tmp_path: Path) -> None:
    with served() as url, chromium(tmp_path, width=900, height=700, scale=2) as driver:
        page = EditorPage(driver, url)
        page.load()
        assert page.run("return devicePixelRatio") == 2
        assert page.open(png(photo(61, 120)))
        stroke_somewhere(page, (61, 120))
        canvas = page.run("const { canvases, root } = editor.stage; return [canvases[1].width, root.clientWidth]")
        assert canvas[0] == 2 * canvas[1]


def test_soft_edges_follow_the_smoothstep_and_the_eraser_takes_them_back(editor: EditorPage) -> None:
    shape = (80, 120)
    editor.open(png(photo(*shape)))
    editor.settings(size=40, hardness=0.25)
    places = whole(editor.on_page([(30, 30), (90, 50)]))
    editor.drag(places)
    rest = np.clip((20 - distance(shape, in_image(editor, places))) / 15, 0, 1)
    expected = np.floor(255 * rest * rest * (3 - 2 * rest) + 0.5)
    mask = editor.mask()
    assert np.abs(mask - expected).max() <= 1
    assert (mask == expected).mean() > 0.999
    assert editor.run("return editor.soft")
    editor.settings(tool="eraser")
    editor.drag(places)
    rubbed = editor.mask()
    assert np.array_equal(rubbed, np.minimum(mask, 255 - mask))


def test_fifty_steps_can_be_undone_and_redone(editor: EditorPage) -> None:
    editor.open(png(photo(60, 600)))
    editor.settings(size=4)
    places = editor.on_page([(10 + 10 * index, 30) for index in range(53)])
    masks = []
    for place in places:
        editor.drag([place])
        if len(masks) < 3 or place == places[-1]:
            masks.append(editor.mask())
    for _ in range(55):
        editor.key("z", modifiers=2)
    assert np.array_equal(editor.mask(), masks[2])  # 50 of 53 are gone
    for index in range(55):
        editor.key("y" if index % 2 else "Z", modifiers=2 if index % 2 else 10)
    assert np.array_equal(editor.mask(), masks[3])
    assert len(editor.events("mask")) == 53 + 50 + 50


def test_a_stroke_continues_outside_of_the_canvas_until_escape_or_release(editor: EditorPage) -> None:
    shape = (50, 80)
    editor.open(png(photo(*shape)))
    editor.settings(size=12)
    start, end = whole(editor.on_page([(40, 10), (60, 20)]))
    outside = (start[0] + 40, 5.0)  # over the toolbar
    editor.drag([start, outside, end, outside])
    assert_stroke(editor, shape, in_image(editor, [start, outside, end, outside]), 6)
    painted = editor.mask()
    editor.mouse("Pressed", *end, buttons=1)
    editor.mouse("Moved", *start, buttons=1)
    editor.key("Escape")
    editor.mouse("Moved", *end, buttons=1)
    editor.mouse("Released", *end)
    assert np.array_equal(editor.mask(), painted)


def test_rectangle_and_lasso_select_and_remove(editor: EditorPage) -> None:
    shape = (90, 120)
    editor.open(png(photo(*shape)))
    editor.key("r")
    places = whole(editor.on_page([(100.3, 70.7), (20.2, 10.6)]))
    editor.drag(places)
    (right, bottom), (left, top) = np.rint(in_image(editor, places)).astype(int)
    expected = np.zeros(shape, np.uint8)
    expected[top:bottom, left:right] = 255
    assert np.array_equal(editor.mask(), expected)
    editor.key("l")
    star = [(60.0, 5.0), (85.0, 80.0), (20.0, 33.0), (100.0, 33.0), (35.0, 80.0)]  # crosses itself
    places = whole(editor.on_page(star))
    editor.drag(places, modifiers=1)  # Alt removes
    inside = winding(shape, in_image(editor, places)) != 0
    assert 0 < inside.sum() < inside.size
    assert np.array_equal(editor.mask(), np.where(inside, 0, expected))


def winding(shape: tuple[int, int], points: Points) -> NDArray[np.int64]:
    """Winding number of a polygon around each pixel centre, by angles."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    total = np.zeros(shape)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        turn = np.arctan2(by - y, bx - x) - np.arctan2(ay - y, ax - x)
        total += (turn + np.pi) % (2 * np.pi) - np.pi
    return np.rint(total / (2 * np.pi)).astype(np.int64)


@pytest.mark.parametrize("tolerance", [0, 25, 60])
def test_flood_selects_the_connected_pixels_of_a_colour(editor: EditorPage, tolerance: int) -> None:
    pixels = photo(70, 110)
    pixels[20:50, 30:60] = (90, 90, 200)
    pixels[48:60, 58:90] = (90, 100, 190)
    pixels[5:10, 80:90] = (90, 90, 200)  # the same colour, not connected
    editor.open(png(pixels))
    editor.settings(tool="flood", tolerance=tolerance)
    editor.drag(whole(editor.on_page([(40.5, 30.5)])))
    near = (np.abs(pixels.astype(int) - pixels[30, 40]) <= tolerance).all(axis=-1)
    regions = np.asarray(label(near, connectivity=1))
    assert np.array_equal(editor.mask(), np.where(regions == regions[30, 40], 255, 0))


def test_invert_and_clear_are_steps(editor: EditorPage) -> None:
    shape = (300, 520)  # more than one tile
    editor.open(png(photo(*shape)))
    editor.settings(size=60)
    editor.drag(editor.on_page([(250, 250), (300, 270)]))
    painted = editor.mask()
    share = editor.run("return editor.painter.mask.share")
    assert share == pytest.approx(painted.mean() / 255)
    editor.key("i")
    assert np.array_equal(editor.mask(), 255 - painted)
    assert editor.run("return editor.painter.mask.share") == pytest.approx(1 - share)
    editor.key("Delete")
    assert editor.is_empty()
    editor.key("z", modifiers=2)
    editor.key("z", modifiers=2)
    assert np.array_equal(editor.mask(), painted)
    assert not editor.run("return editor.soft")


def test_the_keyboard_alone_paints(editor: EditorPage) -> None:
    shape = (64, 96)
    editor.open(png(photo(*shape)))
    editor.settings(size=10)
    for _ in range(60):
        editor.key("Tab")
        if editor.run("return document.activeElement === editor.stage.root"):
            break
    crosshair = "const { x, y } = editor.stage.guides.crosshair; return [x, y]"
    start = editor.run(crosshair)
    assert start == [48, 32]
    editor.key("ArrowLeft", modifiers=8)
    editor.key("]")
    middle = editor.run(crosshair)
    editor.key("Enter", up=False)
    editor.key("ArrowUp", modifiers=8)
    end = editor.run(crosshair)
    editor.key("Enter")
    step = editor.run("return editor.keys.step")
    assert (middle, end) == ([48 - 8 * step, 32], [48 - 8 * step, 32 - 8 * step])
    size = editor.run("return editor.settings.size")
    assert size > 10
    assert_stroke(editor, shape, [tuple(middle), tuple(end)], size / 2)
    editor.key("Delete")
    editor.key("r")
    editor.key("Enter")
    editor.key("ArrowRight", modifiers=8)
    editor.key("ArrowDown", modifiers=8)
    editor.key("Enter")
    mask = editor.mask()
    assert mask.sum() == 255 * (8 * step) ** 2
    editor.key("?")
    assert editor.run("return document.querySelector('dialog').open")
    editor.key("Escape")


def test_escape_closes_a_panel_unless_it_cancels_a_stroke(editor: EditorPage) -> None:
    editor.open(png(photo(50, 80)))
    (place,) = whole(editor.on_page([(40, 25)]))
    shown = "return document.querySelectorAll('.editor-popover:popover-open').length"
    for title in ("Extend the image", "Overlay of the hole"):
        editor.run("document.querySelector(`button[aria-label='${args[0]}']`).click()", title)
        assert editor.run(shown) == 1
        editor.key("Escape")
        assert editor.run(shown) == 0
    editor.mouse("Pressed", *place, buttons=1)
    editor.key("Escape")
    editor.mouse("Released", *place)
    assert editor.is_empty()


def test_shortcuts_work_on_layouts_of_other_letters(editor: EditorPage) -> None:
    editor.open(png(photo(50, 80)))
    press = (
        "const event = new KeyboardEvent('keydown', { key: args[0], code: args[1], ...args[2], bubbles: true });"
        " editor.stage.root.dispatchEvent(event); return editor.settings.tool"
    )
    assert editor.run(press, "у", "KeyE", {}) == "eraser"  # Cyrillic
    assert editor.run(press, "λ", "KeyL", {}) == "lasso"
    assert editor.run(press, "ה", "KeyF", {"shiftKey": True}) == "flood"
    assert editor.run(press, "ł", "KeyL", {"modifierAltGraph": True}) == "flood"  # a letter of a Latin layout
    assert editor.run(press, "и", "KeyB", {}) == "brush"
    editor.drag(editor.on_page([(40, 25)]))
    assert not editor.is_empty()
    editor.run(press, "я", "KeyZ", {"ctrlKey": True})
    assert editor.is_empty()
    editor.run(press, "Я", "KeyZ", {"ctrlKey": True, "shiftKey": True})
    assert not editor.is_empty()
    assert editor.run(press, "b", "KeyN", {}) == "brush"  # a Latin letter counts wherever it lies
    assert editor.run(press, "h", "KeyJ", {}) == "hand"


def test_two_fingers_zoom_and_one_paints(editor: EditorPage) -> None:
    shape = (80, 100)
    editor.open(png(photo(*shape)))
    editor.settings(size=10)
    before = editor.view()
    editor.touch("Start", [(600, 400)])
    editor.touch("Move", [(620, 410)])
    editor.touch("Start", [(620, 410), (720, 410)])
    editor.touch("Move", [(570, 410), (770, 410)])
    editor.touch("End", [])
    after = editor.view()
    assert after["zoom"] == pytest.approx(2 * before["zoom"])
    assert editor.is_empty()
    # Fingers have moved apart around their centre, so the point between them stays.
    x, y = 670 - before["left"] - before["x"], 410 - before["top"] - before["y"]
    assert after["x"] == pytest.approx(before["x"] - x, abs=1)
    assert after["y"] == pytest.approx(before["y"] - y, abs=1)
    editor.touch("Start", [(600, 400)])
    editor.touch("Move", [(650, 430)])
    editor.touch("End", [])
    assert_stroke(editor, shape, in_image(editor, [(600, 400), (650, 430)]), 5)


def test_a_pen_presses_and_the_palm_beside_it_is_ignored(editor: EditorPage) -> None:
    shape = (80, 100)
    editor.open(png(photo(*shape)))
    editor.settings(size=20)
    place = whole(editor.on_page([(50, 40)]))[0]
    editor.mouse("Pressed", *place, buttons=1, pointerType="pen", force=0.5)
    editor.touch("Start", [(500, 300)])
    editor.touch("Move", [(560, 340)])
    editor.touch("End", [])
    editor.mouse("Released", *place, pointerType="pen")
    assert_stroke(editor, shape, in_image(editor, [place]), 5)


def test_handles_and_numbers_extend_the_image(editor: EditorPage) -> None:
    editor.open(png(photo(30, 100)))
    zoom = editor.view()["zoom"]
    x, y = whole(editor.on_page([(100, 15)]))[0]
    editor.drag([(x + 12, y), (x + 90, y + 5)])
    assert editor.run("return editor.extend") == [0, 0, round(78 / zoom), 0]
    assert editor.view()["zoom"] < zoom  # all of the new size is visible
    assert editor.is_empty()
    zoom = editor.view()["zoom"]
    x, y = whole(editor.on_page([(0, 15)]))[0]
    editor.drag([(x - 12, y), (x - 40, y), (-200, y), (-100, y)])  # beyond the stage and the window
    assert editor.run("return editor.extend[0]") == round((x + 88) / zoom)
    editor.run("editor.extend = [-5, 12.4, 3, 1e9]")
    assert editor.run("return editor.extend") == [0, 12, 3, 4096]
    editor.run("document.querySelector('.editor-handle-top').focus()")
    editor.key("ArrowUp")
    assert editor.run("return editor.extend") == [0, 20, 3, 4096]
    assert len(editor.events("extend")) == 4


def test_a_result_takes_the_place_of_the_image_until_painting_goes_on(editor: EditorPage) -> None:
    editor.open(png(photo(60, 100)))
    editor.settings(size=20)
    editor.drag(editor.on_page([(50, 30)]))
    result = base64.b64encode(png(np.full((60, 100, 3), (10, 200, 90), np.uint8))).decode()
    place = editor.on_page([(50, 30)])[0]
    colour = (
        "await frame(); const box = editor.stage.root.getBoundingClientRect(); return editor.stage.contexts.slice(0, 2)"
        ".map((context) => [...context.getImageData(args[0] - box.left, args[1] - box.top, 1, 1).data])"
    )
    assert editor.run(colour, *place)[1][3] == 128
    editor.run("await editor.show(toBlob(args[0], 'image/png'))", result)
    assert editor.run(colour, *place) == [[10, 200, 90, 255], [0, 0, 0, 0]]
    editor.drag(editor.on_page([(70, 30)]))
    assert editor.events("show") == [None]
    assert editor.run(colour, *place)[1][3] == 128
