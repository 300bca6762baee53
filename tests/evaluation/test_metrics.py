"""Metrics against closed forms, and against torchmetrics where its own classes are an independent way."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from rad.evaluation.metrics import ReferenceFeatures, columns, pixels, sets
from tests.conftest import box_hole


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normal(count: int, width: int, *, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def changed(reference: Tensor, where: Tensor, by: float) -> Tensor:
    return reference + by * where


# one image


def test_psnr_of_a_constant_offset():
    reference = noise(2, 3, 16, 16) / 2
    image = torch.stack([reference[0] + 0.1, reference[1] - 0.01])
    assert pixels.psnr(image, reference).tolist() == pytest.approx([20, 40], abs=1e-4)


def test_psnr_of_equal_holes_is_limited_by_8_bits():
    reference, hole = noise(1, 3, 16, 16), box_hole(16, 16, 2, 2, 8, 8)[None]
    rounded = 10 * math.log10(1 / (1 / 255**2 / 12))
    assert pixels.psnr(reference, reference, hole).item() == pytest.approx(rounded) == pixels.PSNR_LIMIT


def test_psnr_of_equal_images_is_that_of_a_single_different_value():
    reference = (noise(2, 3, 16, 16) * 254).round() / 255
    image = reference.clone()
    image[0, 1, 2, 3] += 1 / 255
    image[1, :, 2, 3] += 1 / 255
    one, three = pixels.psnr(image, reference).tolist()
    assert pixels.psnr(reference, reference).tolist() == pytest.approx([one, one], abs=1e-3)
    assert one - three == pytest.approx(10 * math.log10(3), abs=1e-3)


def test_psnr_of_the_hole_sees_the_hole_and_nothing_else():
    reference, hole = noise(1, 3, 20, 24) / 2, box_hole(20, 24, 3, 4, 9, 17)[None]
    inside, outside = changed(reference, hole, 0.1), changed(reference, 1 - hole, 0.1)
    assert pixels.psnr(inside, reference, hole).item() == pytest.approx(20, abs=1e-4)
    assert pixels.psnr(outside, reference, hole).item() == pixels.PSNR_LIMIT
    share = float(hole.mean())
    assert pixels.psnr(inside, reference).item() == pytest.approx(20 - 10 * math.log10(share), abs=1e-4)


def test_soft_pixels_are_hole():
    reference, hole = noise(1, 3, 16, 16) / 2, box_hole(16, 16, 2, 2, 12, 12)[None]
    image = changed(reference, hole, 0.1)
    for metric in (pixels.psnr, pixels.seam, pixels.known_error):
        assert metric(image, reference, 0.2 * hole).item() == metric(image, reference, hole).item()


def test_an_empty_hole_has_no_psnr():
    reference = noise(1, 3, 16, 16)
    assert pixels.psnr(reference, reference, torch.zeros(1, 1, 16, 16)).isnan().all()


def test_ssim_is_one_for_equal_images_and_falls_with_noise():
    reference = noise(1, 3, 32, 32)
    little, much = (reference.lerp(noise(1, 3, 32, 32, seed=1), share) for share in (0.1, 0.5))
    equal, good, bad = (pixels.ssim(image, reference).item() for image in (reference, little, much))
    assert equal == pytest.approx(1, abs=1e-6)
    assert 0 < bad < good - 0.1 < equal - 0.1


def test_ssim_of_two_constants():
    first, second = torch.full((1, 3, 16, 16), 0.4), torch.full((1, 3, 16, 16), 0.6)
    luminance = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    # Variances of zero are differences of numbers below 0.4, some ten eps of float32 off, beside the constant 0.0009.
    assert pixels.ssim(first, second).item() == pytest.approx(luminance, abs=2e-3)


@pytest.mark.parametrize("metric", [pixels.psnr, pixels.ssim])
def test_an_image_is_scored_alike_in_any_batch(metric):
    image, reference = noise(5, 3, 16, 16, seed=1), noise(5, 3, 16, 16)
    alone = torch.cat([metric(image[n : n + 1], reference[n : n + 1]) for n in range(5)])
    # SSIM in float32: some ten eps of numbers up to 1, beside variances of 1 / 12
    assert torch.allclose(metric(image, reference), alone, rtol=1e-6, atol=2e-5 if metric is pixels.ssim else 1e-9)


def test_seam_of_a_constant_error_is_that_error():
    reference, hole = noise(1, 3, 32, 32) / 2, box_hole(32, 32, 8, 8, 24, 24)[None]
    assert pixels.seam(changed(reference, hole, 10 / 255), reference, hole).item() == pytest.approx(10, abs=1e-4)


def test_seam_ignores_the_inside_and_the_known_pixels():
    reference, hole = noise(1, 3, 32, 32) / 2, box_hole(32, 32, 8, 8, 24, 24)[None]
    inside = box_hole(32, 32, 9, 9, 23, 23)[None]
    assert pixels.seam(changed(reference, inside, 0.3), reference, hole).item() == 0
    assert pixels.seam(changed(reference, 1 - hole, 0.3), reference, hole).item() == 0
    corner = box_hole(32, 32, 8, 8, 9, 9)[None]
    ring = 16**2 - 14**2
    error = pixels.seam(changed(reference, corner, 51 / 255), reference, hole).item()
    assert error == pytest.approx(51 / ring, abs=1e-4)


@pytest.mark.parametrize(("side", "width"), [(16, 1), (32, 1), (64, 1), (96, 2), (256, 4), (512, 8)])
def test_the_band_is_a_64th_of_the_side(side: int, width: int):
    hole = torch.ones(1, 1, side, side + 9)
    hole[..., 0] = 0
    reference = torch.zeros(1, 3, side, side + 9)
    image = torch.zeros_like(reference)
    image[..., width + 1 :] = 1
    assert pixels.band_width(side, side + 9) == width
    assert pixels.seam(image, reference, hole).item() == 0
    image[..., width] = 1
    assert pixels.seam(image, reference, hole).item() == pytest.approx(255 / width)


def test_seam_of_a_hole_without_border_is_unknown():
    image = noise(1, 3, 16, 16)
    assert pixels.seam(image, image, torch.ones(1, 1, 16, 16)).isnan().all()


def test_error_of_known_pixels_ignores_the_hole():
    reference, hole = noise(1, 3, 16, 16) / 2, box_hole(16, 16, 2, 2, 10, 10)[None]
    assert pixels.known_error(changed(reference, hole, 0.4), reference, hole).item() == 0
    known = changed(reference, 1 - hole, -3 / 255)
    assert pixels.known_error(known, reference, hole).item() == pytest.approx(3, abs=1e-4)
    assert pixels.known_error(reference, reference, torch.ones(1, 1, 16, 16)).isnan().all()


# crops


def test_crop_is_the_bounding_box_of_all_parts():
    hole = box_hole(40, 50, 5, 7, 6, 9, 20, 30, 25, 45)
    assert pixels.crop_box(hole) == (5, 7, 25, 45)
    assert pixels.crop_box(0.1 * hole) == (5, 7, 25, 45)
    image = torch.arange(40 * 50).view(1, 40, 50)
    assert torch.equal(pixels.crop(image, (5, 7, 25, 45)), image[:, 5:25, 7:45])


@pytest.mark.parametrize("place", [0, 1, 4, 10, 17, 18, 19])
def test_small_crops_grow_to_the_window_of_ssim_inside_the_image(place: int):
    top, left, bottom, right = pixels.crop_box(box_hole(20, 40, place, 8, place + 1, 30))
    assert (left, right) == (8, 30)
    assert bottom - top == pixels.SMALLEST == 11
    assert 0 <= top <= place < bottom <= 20
    if 5 <= place <= 14:
        assert top == place - 5


def test_crops_need_a_hole_and_a_large_enough_image():
    with pytest.raises(ValueError, match="empty"):
        pixels.crop_box(torch.zeros(1, 16, 16))
    with pytest.raises(ValueError, match="10x16"):
        pixels.crop_box(torch.ones(1, 10, 16))


# sets


@pytest.mark.parametrize(("count", "width"), [(60, 5), (20, 64)])
def test_frechet_distance_of_a_shift_is_its_square(count: int, width: int):
    features = normal(count, width, seed=0)
    shift = torch.linspace(-1, 2, width, dtype=torch.float64)
    distance = sets.frechet_distance(features + shift, ReferenceFeatures(features))
    assert distance == pytest.approx(float(shift.square().sum()), rel=1e-6, abs=1e-5)


def test_frechet_distance_of_a_scale():
    """Tr (C + s^2 C - 2 s C) = (1 - s)^2 Tr C for centred features."""
    features = normal(50, 4, seed=0)
    features = features - features.mean(0)
    expected = 0.25 * float(torch.cov(features.T).trace())
    assert sets.frechet_distance(1.5 * features, ReferenceFeatures(features)) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "many", "width"), [(40, 50, 8), (10, 12, 40), (12, 200, 30), (200, 12, 30)])
def test_frechet_distance_equals_torchmetrics_in_every_form(count: int, many: int, width: int):
    first = normal(count, width, seed=1) @ normal(width, width, seed=2) / 4 + 0.2
    second = normal(many, width, seed=3)
    direct = FrechetInceptionDistance(feature=sets._Identity(width))
    direct.update(second, real=True)
    direct.update(first, real=False)
    expected, reference = float(direct.compute()), ReferenceFeatures(second)
    assert sets.frechet_distance(first, reference) == pytest.approx(expected, rel=1e-5)
    terms = sets.FrechetTerms(first, reference)
    assert terms.distance(torch.ones(count, dtype=torch.float64)) == pytest.approx(expected, rel=1e-5)


def test_weights_are_repetitions():
    first, reference = normal(6, 4, seed=1), ReferenceFeatures(normal(9, 4, seed=2))
    weight = torch.tensor([2.0, 0, 1, 3, 0, 1], dtype=torch.float64)
    repeated = first.repeat_interleave(weight.long(), 0)
    found = sets.FrechetTerms(first, reference).distance(weight)
    assert found == pytest.approx(sets.frechet_distance(repeated, reference))
    # Pairs of an image with itself are the only difference.
    kernel = sets.poly_kernel(repeated, repeated)
    owner = torch.arange(6).repeat_interleave(weight.long())
    different = owner[:, None] != owner[None]
    between = sets.poly_kernel(repeated, reference.features).mean()
    expected = float(kernel[different].mean() + reference.kernel_mean - 2 * between)
    assert sets.KernelTerms(first, reference).distance(weight) == pytest.approx(expected)


def test_kernel_distance_equals_torchmetrics_for_sets_of_equal_size():
    first, second = normal(20, 6, seed=1) + 0.3, normal(20, 6, seed=2)
    expected = float(poly_mmd(second, first))
    assert sets.kernel_distance(first, ReferenceFeatures(second)) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "many"), [(10, 10), (6, 30), (30, 6)])
def test_kernel_distance_is_zero_on_average_for_equal_laws(count: int, many: int):
    found = torch.tensor(
        [
            sets.kernel_distance(normal(count, 3, seed=n), ReferenceFeatures(normal(many, 3, seed=1000 + n)))
            for n in range(300)
        ]
    )
    assert abs(found.mean()) < 3 * found.std() / 300**0.5
    assert (found < 0).any()
    moved = sets.kernel_distance(normal(count, 3, seed=1) + 2, ReferenceFeatures(normal(many, 3, seed=2)))
    assert moved > found.mean() + 3 * found.std()


@pytest.mark.parametrize("distance", [sets.frechet_distance, sets.kernel_distance])
def test_distances_between_sets_need_two_of_each(distance):
    with pytest.raises(ValueError, match="two images"):
        distance(normal(1, 3, seed=0), ReferenceFeatures(normal(5, 3, seed=1)))
    with pytest.raises(ValueError, match="two images"):
        distance(normal(5, 3, seed=0), ReferenceFeatures(normal(1, 3, seed=1)))


def test_precision_and_recall_of_equal_and_of_disjoint_sets():
    features = normal(40, 6, seed=0)
    reference = ReferenceFeatures(features)
    assert sets.precise(features, reference).mean() == sets.recalled(features, reference).mean() == 1
    assert sets.precise(features + 100, reference).sum() == sets.recalled(features + 100, reference).sum() == 0


def test_precision_is_of_results_and_recall_of_references():
    """One of two clusters is all that the results hold: precise, and half of the references are missed."""
    cluster = normal(30, 3, seed=0)
    reference = ReferenceFeatures(torch.cat([cluster, cluster + 50]))
    results = cluster + 0.01
    assert sets.precise(results, reference).tolist() == [1] * 30
    assert sets.recalled(results, reference).tolist() == [1] * 30 + [0] * 30


def test_precision_by_hand_of_points_on_a_line():
    """Radii to the third nearest other point of 0, 1, 2, 3, 10 are 3, 2, 2, 3, 9."""
    reference = ReferenceFeatures(torch.tensor([[0.0], [1], [2], [3], [10]]))
    assert reference.radii.tolist() == [3, 2, 2, 3, 9]
    results = torch.tensor([[-3.0], [-3.1], [6], [19], [19.1]])
    assert sets.precise(results, reference).tolist() == [1, 0, 1, 1, 0]
    with pytest.raises(ValueError, match="more than 3"):
        _ = ReferenceFeatures(results[:3]).radii


def test_no_result_is_within_its_own_original():
    """1 lies within the radius of 1 alone; 2.2 within those of 2 and 4; 40 within that of 40 alone."""
    reference = ReferenceFeatures(
        torch.tensor([[1.0], [2], [3], [4], [40], [100], [101], [102], [103]]), list("abcdefghi")
    )
    assert reference.radii.tolist() == [3, 2, 2, 3, 38, 3, 2, 2, 3]
    results = torch.tensor([[-2.0], [6.9], [77.9]])
    assert sets.precise(results, reference).tolist() == [1, 1, 1]
    assert sets.precise(results, reference, ["a", "x", "y"]).tolist() == [0, 1, 1]
    assert sets.precise(results, reference, ["b", "d", "e"]).tolist() == [1, 1, 0]


def test_a_copy_counts_for_those_originals_whose_neighbour_it_is():
    """It is as far from them as their radius, and no further."""
    features, names = normal(60, 6, seed=0) + 100, [str(n) for n in range(60)]
    distances = (features[:, None] - features).square().sum(2).fill_diagonal_(math.inf)
    neighbours = set(distances.topk(3, largest=False).indices.flatten().tolist())
    expected = [float(n in neighbours) for n in range(60)]
    assert 0 < sum(expected) < 60
    assert sets.precise(features[:7], ReferenceFeatures(features, names), names[:7]).tolist() == expected[:7]
    assert sets.precise(features, ReferenceFeatures(features, names), names).tolist() == expected


def test_no_original_is_within_its_own_result():
    results = torch.tensor([[0.0], [1], [2], [3], [10]])  # radii 3, 2, 2, 3, 9
    reference = ReferenceFeatures(torch.tensor([[-3.0], [19], [2.0], [-9]]), list("abcd"))
    assert sets.recalled(results, reference).tolist() == [1, 1, 1, 0]
    assert sets.recalled(results, reference, list("axyzb")).tolist() == [0, 0, 1, 0]
    assert sets.recalled(results, reference, list("cwxyz")).tolist() == [1, 1, 1, 0]


def test_kernel_distance_by_hand_of_samples_and_own_originals():
    """All pairs of results of different images, of different originals, and of a result and another image's original."""
    results, originals = normal(6, 3, seed=1), normal(4, 3, seed=2)
    images, names = ["a", "a", "b", "c", "c", "c"], ["b", "c", "d", "a"]

    def mean(first: Tensor, second: Tensor, one: list[str], two: list[str]) -> float:
        pairs = [(1 + float(x @ y) / 3) ** 3 for x, a in zip(first, one, strict=True)
                 for y, b in zip(second, two, strict=True) if a != b]  # fmt: skip
        return sum(pairs) / len(pairs)

    expected = mean(results, results, images, images) + mean(originals, originals, names, names)
    expected -= 2 * mean(results, originals, images, names)
    found = sets.kernel_distance(results, ReferenceFeatures(originals, names), images)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("samples", [1, 4])
def test_kernel_distance_is_zero_on_average_for_results_that_are_paired_with_their_originals(samples: int):
    """Half of a result is its original: drawn anew together with it, and equal in law."""
    found, naive = [], []
    names = [str(n) for n in range(8)]
    images = [name for name in names for _ in range(samples)]
    for drawn in normal(300 * 8 * (samples + 1), 3, seed=5).view(300, -1, 3):
        originals = drawn[:8]
        results = (originals.repeat_interleave(samples, 0) + drawn[8:]) / 2**0.5
        found.append(sets.kernel_distance(results, ReferenceFeatures(originals, names), images))
        naive.append(sets.kernel_distance(results, ReferenceFeatures(originals)))
    assert abs(np.mean(found)) < 3 * np.std(found) / 300**0.5
    assert np.mean(naive) < -10 * np.std(naive) / 300**0.5


def test_sets_in_blocks_are_as_whole(monkeypatch: pytest.MonkeyPatch):
    features, names = normal(10, 3, seed=0), list("abcdefghij")
    results, images = normal(7, 3, seed=1), list("bdxfhja")

    def numbers() -> list[float]:
        reference = ReferenceFeatures(features, names)
        parts = [sets.precise(results, reference, images), sets.recalled(results, reference, images)]
        return [*torch.cat([*parts, reference.radii]).tolist(), sets.kernel_distance(results, reference, images)]

    whole = numbers()
    seen = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda *given: seen.append(len(given[0])) or cdist(*given))
    monkeypatch.setattr(sets, "ROWS", 4)
    assert numbers() == pytest.approx(whole)
    assert max(seen) == 4


def test_error_of_the_hole_ignores_known_pixels():
    reference, hole = noise(1, 3, 16, 16) / 2, box_hole(16, 16, 2, 2, 10, 10)[None]
    assert pixels.hole_error(changed(reference, 1 - hole, 0.4), reference, hole).item() == 0
    assert pixels.hole_error(changed(reference, hole, -3 / 255), reference, hole).item() == pytest.approx(3, abs=1e-4)


def test_diversity_is_the_mean_over_pairs_of_different_samples():
    samples = torch.tensor([0.0, 0.2, 0.8]).view(3, 1, 1, 1).expand(3, 3, 4, 4)

    def distance(first: Tensor, second: Tensor) -> Tensor:
        return (first - second).abs().mean((1, 2, 3))

    for batch_size in (1, 2, 8):
        found = pixels.diversity(distance, samples, batch_size=batch_size)
        assert found == pytest.approx((0.2 + 0.8 + 0.6) / 3)


# names


def test_names_of_crops_and_of_other_metrics_of_an_extractor():
    assert [columns.cropped(name) for name in ("psnr", "lpips/alex")] == ["psnr-crop", "lpips-crop/alex"]
    assert columns.renamed("fd/nature64-resnet", "recall") == "recall/nature64-resnet"


def test_every_metric_records_its_provenance():
    provenance = {"extractor": "net", "weights": "0123"}
    described = [
        *columns.pixel_metrics(raw=True),
        *columns.distance_metrics("perceptual/net", provenance, samples=True),
        *columns.set_metrics("fd/net", "kd/net", provenance, references={"references": "5"}),
    ]
    names = [metric.name for metric in described]
    assert len(set(names)) == len(names) == len({metric.title for metric in described})
    assert all("region" in metric.provenance for metric in described)
    assert all(metric.provenance["weights"] == "0123" for metric in described if "/" in metric.name)
    better = {metric.name: metric.better for metric in described}
    assert better["psnr-hole"] == better["ssim"] == better["recall/net"] == better["precision-crop/net"] == "higher"
    assert better["seam"] == better["fd/net"] == better["kd-crop/net"] == better["perceptual-crop/net"] == "lower"
    assert better["diversity/net"] == "none"
