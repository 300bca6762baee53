"""Windows on images of any size: everything is covered once, nothing lies outside, nothing is filled out of nothing."""

import numpy as np
import pytest

from rad.inpainting.canvas.windows import Window, next_wave, plan_windows

SIZE = 16


def random_hole(random: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    hole = np.zeros((height, width), bool)
    if kind == "boxes":
        for _ in range(random.integers(1, 6)):
            top, left = random.integers(0, height), random.integers(0, width)
            hole[top : top + random.integers(1, 40), left : left + random.integers(1, 40)] = True
    elif kind == "pixels":
        hole[random.random((height, width)) < 0.02] = True
    elif kind == "corners":
        hole[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    elif kind == "diagonal":
        steps = np.arange(min(height, width))
        hole[steps, steps] = True
    elif kind == "frame":
        hole[:] = True
        hole[3:-3, 3:-3] = False
    elif kind == "all":
        hole[:] = True
    return hole


KINDS = ("boxes", "pixels", "corners", "diagonal", "frame", "all", "none")


def cases():
    random = np.random.default_rng(0)
    for kind in KINDS:
        for margin in (0, 1, 2, 5, 7):
            height, width = random.integers(SIZE, 70, 2)
            yield pytest.param(random_hole(random, kind, height, width), margin, id=f"{kind}-{margin}-{height}x{width}")


@pytest.mark.parametrize(("hole", "margin"), list(cases()))
def test_cores_cover_every_hole_pixel_and_windows_lie_inside(hole, margin):
    windows = plan_windows(hole, size=SIZE, margin=margin)
    covered = np.zeros_like(hole)
    for window in windows:
        top, left, bottom, right = window.window
        assert min(top, left) >= 0
        assert (bottom, right) == (min(bottom, hole.shape[0]), min(right, hole.shape[1]))
        assert (bottom - top, right - left) == (SIZE, SIZE)
        inner_top, inner_left, inner_bottom, inner_right = window.core
        # The margin is kept on every side, but for a side at the edge of the image, where nothing lies beyond.
        assert inner_top - top == (margin if top > 0 else 0)
        assert inner_left - left == (margin if left > 0 else 0)
        assert bottom - inner_bottom == (margin if bottom < hole.shape[0] else 0)
        assert right - inner_right == (margin if right < hole.shape[1] else 0)
        assert (hole & ~covered)[window.core_slices].any(), "a window without new hole pixels wastes network calls"
        covered[window.core_slices] = True
    assert len(set(windows)) == len(windows)
    assert not (hole & ~covered).any()
    assert bool(windows) == bool(hole.any())


@pytest.mark.parametrize(("hole", "margin"), list(cases()))
def test_waves_fill_everything_from_known_pixels(hole, margin):
    left, unknown = plan_windows(hole, size=SIZE, margin=margin), hole.copy()
    while left:
        wave = next_wave(unknown, left)
        assert wave, "a wave without windows would never end"
        assert set(wave) <= set(left)
        assert len(set(wave)) == len(wave)
        for number, window in enumerate(wave):
            assert not any(overlap(window, other) for other in wave[:number])
        blind = [window for window in wave if unknown[window.slices].all()]
        seeing = [window for window in left if not unknown[window.slices].all()]
        if blind:  # only when nothing sees, and alone
            assert not seeing
            assert len(wave) == 1
        assert not seeing or min(map(share(unknown), seeing)) == min(map(share(unknown), wave))
        for window in wave:
            unknown[window.core_slices] = False
            left.remove(window)
    assert not unknown.any()


def overlap(one: Window, other: Window) -> bool:
    canvas = np.zeros((200, 200), int)
    canvas[one.slices] += 1
    canvas[other.slices] += 1
    return bool((canvas == 2).any())


def share(unknown: np.ndarray):
    return lambda window: unknown[window.slices].mean()


@pytest.mark.parametrize("margin", [0, 2, 5])
def test_a_compact_hole_gets_one_window_around_its_middle(margin):
    core = SIZE - 2 * margin
    for height, width in ((1, 1), (2, core), (core, core), (core - 1, 3)):
        hole = np.zeros((60, 50), bool)
        hole[21 : 21 + height, 19 : 19 + width] = True
        (window,) = plan_windows(hole, size=SIZE, margin=margin)
        top, left, bottom, right = window.window
        assert abs((top + bottom) - (2 * 21 + height)) <= 1
        assert abs((left + right) - (2 * 19 + width)) <= 1


def test_a_hole_longer_than_a_core_gets_as_few_windows_as_cover_it():
    hole = np.zeros((40, 100), bool)
    hole[18:22, 10:87] = True
    assert len(plan_windows(hole, size=SIZE, margin=4)) == 10  # 77 pixels, cores of 8
    assert len(plan_windows(hole, size=SIZE, margin=0)) == 5


def test_at_the_border_a_window_is_moved_inside_and_keeps_its_core_up_to_the_edge():
    hole = np.zeros((40, 40), bool)
    hole[0, 0] = True
    (window,) = plan_windows(hole, size=SIZE, margin=4)
    assert window == Window((0, 0, 16, 16), (0, 0, 12, 12))
    hole[:] = False
    hole[39, 20] = True
    (window,) = plan_windows(hole, size=SIZE, margin=4)
    assert window == Window((24, 12, 40, 28), (28, 16, 40, 24))


def test_diagonal_neighbours_are_one_hole_and_distant_pixels_are_two():
    hole = np.zeros((80, 80), bool)
    hole[range(40, 52), range(30, 42)] = True  # as long as a core
    assert len(plan_windows(hole, size=SIZE, margin=2)) == 1
    hole[10, 10] = True
    assert len(plan_windows(hole, size=SIZE, margin=2)) == 2


def test_the_window_with_most_known_pixels_goes_first():
    first = Window((0, 0, 16, 16), (0, 0, 16, 16))
    second = Window((0, 8, 16, 24), (0, 8, 16, 24))
    unknown = np.zeros((16, 40), bool)
    unknown[:, 12:24] = True
    assert next_wave(unknown, [second, first]) == [first]
    apart = Window((0, 24, 16, 40), (0, 24, 16, 40))
    unknown[0, 30] = True
    assert next_wave(unknown, [second, first, apart]) == [apart, first]


@pytest.mark.parametrize(("shape", "margin"), [((15, 40), 2), ((40, 15), 2), ((40, 40), 8), ((40, 40), -1)])
def test_an_invalid_size_or_margin_is_an_error(shape, margin):
    with pytest.raises(ValueError, match="margin"):
        plan_windows(np.ones(shape, bool), size=SIZE, margin=margin)
