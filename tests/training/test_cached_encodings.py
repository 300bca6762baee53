"""Training with `data.cache`: the losses without it, and encoders that rest once everything is kept."""

import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from rad.data.cache import EncodingCache
from rad.models.load import load_model
from rad.training.diffusion import Diffusion
from tests.training.test_latent_training import TEXTS, batch, data, fit, module, moved, world

__all__ = ["world"]


def counted(model: Diffusion, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the images and prompts that the encoders get."""
    counts, text = Counter(), model.model.text
    encode = model.model.autoencoder.encode
    monkeypatch.setattr(model.model.autoencoder, "encode", lambda x: counts.update(images=len(x)) or encode(x))
    if text is not None:
        plain = text._encode
        monkeypatch.setattr(text, "_encode", lambda p, t, d: counts.update(texts=len(t)) or plain(p, t, d))
        text.__dict__["hash"] = "of these weights"
    return counts


@pytest.mark.spread(1)
@pytest.mark.parametrize(("kind", "fill"), [("latent", "smooth"), ("stable", "none"), ("stable3", "smooth")])
def test_losses_equal_those_without_a_cache(world, tmp_path, monkeypatch, kind, fill) -> None:
    model = moved(module(world, kind, fill=fill))
    images = batch(pixels_hash=[f"image {number}" for number in range(4)])
    plain = model.losses(images, "val")[0].total
    model.cache = EncodingCache(tmp_path)
    counts = counted(model, monkeypatch)
    first = model.losses(images, "val")[0].total
    assert counts == {"images": 4 if fill == "none" else 8} | ({} if kind == "latent" else {"texts": len(TEXTS)})
    counts.clear()
    second = model.losses(images, "val")[0].total
    assert counts == ({} if fill == "none" else {"images": 4}), "the image with a filled hole depends on the mask"
    assert torch.equal(first, second)
    torch.testing.assert_close(first, plain, rtol=1e-4, atol=1e-5)  # encoders round differently in batches
    row = {name: values[:1] for name, values in images.items()}
    kept = model.losses(row, "val")[0].total
    model.cache = None
    assert torch.equal(model.losses(row, "val")[0].total, kept), "exact where the batch is one image"
    model.cache = EncodingCache(tmp_path)
    changed = batch(pixels_hash=["image 0", "image 1", "image 2", "new"])
    counts.clear()
    model.losses(changed, "val")
    assert counts == {"images": 1 if fill == "none" else 5}
    half = {**images, "pixels_hash": images["pixels_hash"][2:], "text": TEXTS[2:]}
    half |= {name: images[name][2:] for name in ("image", "position")}
    torch.testing.assert_close(model.losses(half, "val")[0].total, second[2:], rtol=1e-4, atol=1e-5)


def test_other_weights_have_other_entries(world) -> None:
    left, right = (load_model(str(world / "stable"), size=16, training=True) for _ in range(2))
    assert left.autoencoder.hash == right.autoencoder.hash
    assert left.text.hash == right.text.hash
    with torch.no_grad():
        next(right.autoencoder.network.parameters()).add_(1e-6)
        next(right.text.encoders[0].parameters()).add_(1e-6)
    right.autoencoder.__dict__.pop("hash")
    right.text.__dict__.pop("hash")
    assert left.autoencoder.hash != right.autoencoder.hash
    assert left.text.hash != right.text.hash
    left.autoencoder.__dict__.pop("hash")
    before, left.autoencoder.scale = right.autoencoder.hash, 2 * left.autoencoder.scale
    assert left.autoencoder.hash != before


@pytest.mark.slow
def test_runs_are_equal_with_and_without_a_cache_and_after_its_loss(world, tmp_path) -> None:
    def weights(name: str, cache: str | None, resume: str | None = None) -> dict[str, torch.Tensor]:
        images = data(world, "latent", flip=True, batch_size=1, cache=cache and str(tmp_path / cache))
        checkpoint = resume and tmp_path / resume / "checkpoints" / "step=2.ckpt"
        fit(tmp_path / name, module(world, "latent"), images, 16, resume=checkpoint)
        return load_file(tmp_path / name / "checkpoints" / "step=16" / "adapter_model.safetensors")

    plain = weights("plain", None)
    cached = weights("cached", "kept")
    assert 8 < len(list((tmp_path / "kept").rglob("*.tensors"))) <= 2 * 8 + 2, (
        "images, some mirrored, and held-out ones"
    )
    again = weights("again", "kept")
    shutil.rmtree(tmp_path / "kept")
    resumed = weights("resumed", "kept", resume="cached")
    for other in (cached, again, resumed):
        assert other.keys() == plain.keys()
        assert all(torch.equal(other[name], plain[name]) for name in plain)
