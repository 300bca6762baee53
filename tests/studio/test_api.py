"""The HTTP API: results equal those of `rad sample`, errors are sentences, and the OpenAPI document is kept."""

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from rad.cli.main import sample
from rad.inpainting.result import Inpainted
from rad.methods.registry import steps_within
from rad.studio.app import create_app
from rad.studio.jobs.job import Job
from tests.conftest import random_image
from tests.studio.server import box, make_service, photo, pixels, png


@pytest.fixture(scope="module")
def service(adapter):
    service = make_service(adapter)
    yield service
    service.queue.close()
    service.queue.join()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), base_url="http://127.0.0.1:7860")


def fill(client, *, image=None, mask=None, name="photo.png", **fields):
    """The finished job of a request."""
    files = {"image": (name, image or photo()), "mask": ("m.png", mask or box())}
    response = client.post("/v1/inpaint", files=files, data={"steps": 3, **fields})
    assert response.status_code == 202, response.text
    return finished(client, response.json()["id"])


def finished(client, id):
    events = client.get(f"/v1/jobs/{id}/events").text
    job = json.loads(events.strip().split("data: ")[-1])
    assert job["state"] == "done", job["error"]
    return job


def sampled(client, job, folder: Path, monkeypatch, *, image=None, name="photo.png"):
    """The pixels of `rad sample --config` with the files of a job."""
    monkeypatch.chdir(folder)
    stem = Path(name).stem
    Path(name).write_bytes(image or photo())
    if (mask := client.get(f"/v1/jobs/{job['id']}/mask").content) is not None:
        Path(f"{stem}-mask.png").write_bytes(mask)
    Path("settings.json").write_bytes(client.get(f"/v1/jobs/{job['id']}/settings").content)
    assert sample(["--config", "settings.json"]) == 0
    return sorted(Path().glob(f"{stem}-{job['method']}*.png"))


@pytest.mark.spread(2)
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("rad", {"num_samples": 2, "seed": 7}),
        ("rad", {"solver": "ddim", "spacing": "quad", "feather": 2, "size_policy": "resize"}),
        ("repaint", {"set": '{"jump_length": 1, "resamplings": 2}'}),
        ("ddnm", {"eta": 0.5}),
        ("mean", {}),
    ],
)
def test_the_settings_of_a_job_give_the_same_pixels_by_rad_sample(client, method, fields, tmp_path, monkeypatch):
    job = fill(client, method=method, **fields)
    files = sampled(client, job, tmp_path, monkeypatch)
    assert len(files) == job["samples"]
    for number, file in enumerate(files):
        ours = pixels(client.get(f"/v1/jobs/{job['id']}/images/{number}").content)
        np.testing.assert_array_equal(ours, pixels(file.read_bytes()))


def test_a_soft_mask_of_16_bits_and_a_turned_jpeg_are_reproduced(client, tmp_path, monkeypatch):
    grey = np.zeros((40, 28), np.uint16)
    grey[8:24, 6:20] = np.linspace(9000, 65535, 14).astype(np.uint16)
    turned, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6  # the file is 40 wide and 28 high, the image 28 and 40
    random_image(28, 40, seed=1).save(turned, format="JPEG", exif=exif)
    job = fill(client, image=turned.getvalue(), mask=png(grey), soft_mask=True, name="turned.jpg")
    assert (job["width"], job["height"]) == (28, 40)
    assert any("grey" in warning for warning in job["warnings"])
    (file,) = sampled(client, job, tmp_path, monkeypatch, image=turned.getvalue(), name="turned.jpg")
    ours = client.get(f"/v1/jobs/{job['id']}/images/0").content
    np.testing.assert_array_equal(pixels(ours), pixels(file.read_bytes()))
    mask = pixels(client.get(f"/v1/jobs/{job['id']}/mask").content)
    np.testing.assert_array_equal(mask, np.rint(grey / 257).astype(np.uint8))


def test_known_pixels_are_exact_and_the_hole_changes(client):
    job = fill(client)
    before, after = pixels(photo()), pixels(client.get(f"/v1/jobs/{job['id']}/images/0").content)
    hole = pixels(box()) == 255
    np.testing.assert_array_equal(before[~hole], after[~hole])
    assert (before[hole] != after[hole]).mean() > 0.5


def test_a_png_has_its_settings_but_no_names_and_texts(client):
    job = fill(client, name="secret.png")
    with Image.open(BytesIO(client.get(f"/v1/jobs/{job['id']}/images/0").content)) as image:
        settings = json.loads(image.info["rad-settings"])
        assert not any("secret" in str(value) for value in image.info.values())
    assert (settings["method"], settings["steps"], settings["model"]) == (["rad"], 3, "tiny")


def test_json_equals_a_form_and_wait_returns_the_first_sample(client):
    job = fill(client, seed=5)
    body = {"image": base64.b64encode(photo()).decode(), "mask": base64.b64encode(box()).decode()}
    response = client.post("/v1/inpaint?wait=true", json={**body, "steps": 3, "seed": 5, "name": "photo.png"})
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert response.content == client.get(f"/v1/jobs/{job['id']}/images/0").content
    assert client.get(response.headers["location"]).json()["state"] == "done"
    other = client.post("/v1/inpaint?wait=true", json={**body, "steps": 3, "seed": 5, "name": "other.png"})
    assert other.content != response.content  # the name is a key of the noise


def test_a_budget_becomes_explicit_steps(client, service):
    process = service.fillers["tiny"].inpainter.model.base_process
    job = fill(client, method="ddnm", budget_nfe=17, steps="")
    from rad.methods import METHODS

    assert job["steps"] == steps_within(METHODS["ddnm"](), 17, base_process=process)
    speed = service._speeds["tiny"]
    speed._rates.clear()
    speed.add(Inpainted([], [], 100, 0, 0.0, 0), 50.0)  # half a second a call
    windows = job["planned"] // 17
    job = fill(client, method="rad", budget_seconds=0.5 * 4 * windows, steps="")
    assert (job["steps"], job["planned"]) == (4, 4 * windows)
    late = client.post(
        "/v1/inpaint",
        files={"image": photo(), "mask": box()},
        data={"budget_seconds": 0.01},
    )
    assert late.status_code == 422
    assert "give more seconds" in late.json()["error"]
    speed._rates.clear()


def test_events_are_the_states_of_the_job_up_to_its_end(client):
    response = client.post("/v1/inpaint", files={"image": photo(), "mask": box()}, data={"steps": 20})
    text = client.get(f"/v1/jobs/{response.json()['id']}/events").text
    states = [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n") if part.startswith("data: ")]
    calls = [state["nfe"] for state in states]
    assert calls == sorted(calls)
    assert states[-1]["nfe"] == states[-1]["planned"] == 20 * (states[-1]["planned"] // 20) > 0
    assert [state["state"] for state in states][-1] == "done"
    assert states[-1]["seconds"] > 0


def test_methods_are_those_of_the_model_with_their_presets(client, base):
    methods = {method["name"]: method for method in client.get("/v1/methods").json()["methods"]}
    assert {"rad", "repaint", "dps", "mean"} <= methods.keys()
    assert not methods.keys() & {"m2s", "lama", "pilot", "inpainting_model"}  # settings that are paths; other models
    assert "dpm++2m" in methods["rad"]["solvers"]
    assert "dpm++2m" not in methods["repaint"]["solvers"]
    settings = {setting["name"]: setting for setting in methods["repaint"]["settings"]}
    assert (settings["jump_length"]["type"], settings["jump_length"]["default"]) == ("int", 10)
    assert methods["dps"]["vjp"] == methods["dps"]["nfe"] > 0
    of_base = make_service(base, id="base")
    assert "rad" not in of_base.fillers["base"].methods
    assert "repaint" in of_base.fillers["base"].methods
    of_base.queue.close()


def test_masks_and_images_are_read_as_by_rad_sample(client):
    alpha = np.full((28, 40, 4), 255, np.uint8)
    alpha[..., :3] = pixels(photo())
    alpha[5:12, 8:30, 3] = 0
    answer = client.post("/v1/mask", files={"mask": png(alpha), "image": photo()}).json()
    mask = pixels(base64.b64decode(answer["mask"]))
    np.testing.assert_array_equal(mask == 255, alpha[..., 3] == 0)
    assert answer["notes"] == ["its transparent part is the hole"]
    tiff = BytesIO()
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 54).save(tiff, format="TIFF")
    converted = client.post("/v1/image", files={"image": tiff.getvalue()})
    assert pixels(converted.content).shape == (30, 40, 3)
    assert pixels(converted.content).max() == 252  # 1199 * 54 / 257


def test_examples_are_images_with_masks_of_their_size(client):
    examples = client.get("/v1/examples").json()["examples"]
    assert examples
    for example in examples:
        image, mask = (pixels(client.get(example[part]).content) for part in ("image", "mask"))
        assert image.shape[:2] == mask.shape
        assert 0 < (mask == 255).mean() < 0.1
        assert set(np.unique(mask)) == {0, 255}
    assert client.get("/v1/examples/other.png").status_code == 404


def test_a_finished_job_can_be_forgotten(client):
    job = fill(client)
    assert client.get(f"/v1/jobs/{job['id']}/images/1").status_code == 404
    assert client.delete(f"/v1/jobs/{job['id']}").json()["state"] == "done"
    gone = client.get(f"/v1/jobs/{job['id']}")
    assert gone.status_code == 410
    assert "removed" in gone.json()["error"]
    assert client.get("/v1/jobs/other").status_code == 404


def test_metrics_count_jobs_and_network_calls(client, service):
    before = service.queue.nfe
    job = fill(client)
    lines = dict(line.rsplit(" ", 1) for line in client.get("/v1/metrics").text.splitlines() if line[0] != "#")
    assert float(lines["rad_network_calls_total"]) == before + job["nfe"]
    assert float(lines['rad_jobs_ended_total{state="done"}']) >= 1
    assert float(lines["rad_kept_bytes"]) > 0


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"stps": 3}, "did you mean steps?"),
        ({"steps": "1_0"}, "steps is '1_0'; it should be a plain number such as 20 or 0.5"),
        ({"eta": "0.5 "}, "eta is '0.5 '; it should be a plain number"),
        ({"steps": 0}, "steps is '0'; it should be greater than or equal to 1"),
        ({"steps": 3, "budget_nfe": 9}, "give one of them"),
        ({"model": "tinny"}, "did you mean tiny?"),
        ({"method": "repiant"}, "not available on tiny"),
        ({"method": "repaint", "set": '{"jump": 3}'}, "it has jump_length"),
        ({"method": "repaint", "set": '{"jump_length": 0}'}, "allowed are 1 or more"),
        ({"method": "repaint", "set": "[1]"}, "give an object"),
        ({"solver": "euler"}, "should be 'ddpm'"),
        ({"method": "repaint", "solver": "dpm++2m"}, "use solver 'ddpm' or 'ddim'"),
        ({"size_policy": "error"}, "40"),
        ({"num_samples": 17}, "up to 16"),
        ({"prompt": "a cat"}, "prompt"),
        ({"mask_threshold": 0.5, "soft_mask": "true"}, "exclude each other"),
        ({"eta": "nan"}, "eta"),
        ({"guidance": 0}, "guidance has no effect, since tiny takes no text"),
        ({"method": "repaint", "set": '{"resamplings": 1000000000}'}, "takes up to 1000"),
        ({"method": "repaint", "set": '{"resamplings": null}'}, "set.resamplings is None; give a number"),
        ({"method": "repaint", "set": f'{{"resamplings": {"9" * 4000}}}'}, "resamplings is 99"),
        ({"method": "repaint", "set": f'{{"resamplings": "{"x" * 60_000}"}}'}, "give a number, a short text"),
        ({"method": "dps", "set": f'{{"{"x" * 60_000}": 1}}'}, "give a number, a short text"),
        ({"model": "x" * 99}, "there is no model"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_wrong_values_are_explained_in_one_line(client, fields, part):
    response = client.post("/v1/inpaint", files={"image": photo(), "mask": box()}, data=fields)
    assert response.status_code == 422
    assert part in response.json()["error"]
    assert "\n" not in response.json()["error"]
    assert len(response.text) < 1000


def test_broken_files_and_bodies_are_explained(client):
    def error(status, **request):
        response = client.post("/v1/inpaint", **request)
        assert response.status_code == status, response.text
        return response.json()["error"]

    assert "image is missing" in error(422, files={"mask": box()})
    assert "mask is missing" in error(422, files={"image": photo()})
    assert "not an image" in error(422, files={"image": b"hello", "mask": box()})
    assert "cannot read the image" in error(422, files={"image": photo()[:-300], "mask": box()})
    assert "40x28" in error(422, files={"image": photo(), "mask": box(30, 30)})
    assert "image itself" in error(422, files={"image": photo(), "mask": photo()})
    assert "base64" in error(422, json={"image": "???"})
    assert "JSON" in error(422, content=b"{", headers={"content-type": "application/json"})
    assert "content type" in error(415, content=b"x", headers={"content-type": "text/plain"})
    assert "form cannot be read" in error(422, content=b"x", headers={"content-type": "multipart/form-data"})
    assert "twice" in error(422, files=[("image", photo()), ("image", photo())])


def test_an_extended_image_needs_no_mask_and_is_reproduced(client, tmp_path, monkeypatch):
    answer = client.post("/v1/inpaint", files={"image": ("a.png", photo())}, data={"steps": 2, "extend": "0,4,10,0"})
    job = finished(client, answer.json()["id"])
    assert (job["width"], job["height"]) == (50, 32)
    result = pixels(client.get(f"/v1/jobs/{job['id']}/images/0").content)
    np.testing.assert_array_equal(result[4:, :40], pixels(photo()))
    assert not pixels(client.get(f"/v1/jobs/{job['id']}/mask").content).any()
    settings = client.get(f"/v1/jobs/{job['id']}/settings").json()
    assert settings["extend"] == "0,4,10,0"
    assert "mask" not in settings
    both = fill(client, extend="3,0,0,0")
    result = pixels(client.get(f"/v1/jobs/{both['id']}/images/0").content)
    known = pixels(box()) == 0
    np.testing.assert_array_equal(result[:, 3:][known], pixels(photo())[known])


def test_grey_pixels_without_effect_are_a_warning(client):
    job = fill(client, mask=box(value=128), soft_mask=True, method="tdpaint")
    assert any("completely" in warning for warning in job["warnings"])
    assert not any("completely" in warning for warning in fill(client, mask=box(value=128), soft_mask=True)["warnings"])


def test_previews_are_small_images_of_a_job_that_somebody_follows(client, monkeypatch):
    monkeypatch.setattr("rad.studio.service.BETWEEN_PREVIEWS", 0.0)
    job = fill(client, steps=10)
    assert job["preview"] > 3
    preview = pixels(client.get(f"/v1/jobs/{job['id']}/preview").content)
    known = pixels(box()) == 0
    assert preview.shape == (28, 40, 3)
    np.testing.assert_array_equal(preview[known], pixels(photo())[known])
    shown, show = [], Job.show
    monkeypatch.setattr(Job, "show", lambda job, preview: shown.append(preview) or show(job, preview))
    job = fill(client, steps=2, solver="ddim", num_samples=5, batch_size=1, size_policy="resize")
    assert len(shown) == job["preview"] == 2, "later batches do not hold the first sample"
    first = pixels(client.get(f"/v1/jobs/{job['id']}/images/0").content)
    np.testing.assert_array_equal(pixels(client.get(f"/v1/jobs/{job['id']}/preview").content), first)
    large = random_image(600, 900, seed=1)
    answer = client.post(
        "/v1/inpaint",
        files={"image": png(large), "mask": box(900, 600)},
        data={"steps": 3, "name": "a.png"},
    )
    job = finished(client, answer.json()["id"])
    assert pixels(client.get(f"/v1/jobs/{job['id']}/preview").content).shape == (341, 512, 3)


def test_an_extension_of_nothing_needs_a_mask(client):
    answer = client.post("/v1/inpaint", files={"image": photo()}, data={"steps": 1, "extend": "0,0,0,0"})
    assert (answer.status_code, "mask is missing" in answer.json()["error"]) == (422, True)
