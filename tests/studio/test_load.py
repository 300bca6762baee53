"""Many clients at once against a real server."""

import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.studio.server import box, make_service, photo, pixels, serving

JOBS, CLIENTS, LIMIT, MEGABYTES = 50, 8, 6, 0.2

REQUESTS = [
    {
        "method": ("rad", "ddnm", "repaint", "mean")[number % 4],
        "steps": 4,
        "seed": number % 5,
        "num_samples": 1 + number % 2,
    }
    for number in range(JOBS)
]


def run(address, numbers, results, refused):
    """Start jobs one after another; those that are refused are tried again."""
    with httpx.Client(base_url=address, timeout=240) as client:
        for number in numbers:
            while True:
                files = {"image": ("photo.png", photo()), "mask": ("mask.png", box())}
                answer = client.post("/v1/inpaint", files=files, data=REQUESTS[number])
                if answer.status_code != 429:
                    break
                assert int(answer.headers["retry-after"]) >= 1
                refused.append(number)
                time.sleep(0.05)
            assert answer.status_code == 202, answer.text
            job = answer.json()["id"]
            client.get(f"/v1/jobs/{job}/events")
            results[number] = client.get(f"/v1/jobs/{job}/images/0").content


@pytest.mark.slow
def test_jobs_of_many_clients_are_all_finished_and_equal_serial_ones(adapter):
    service = make_service(adapter, max_queue=LIMIT, max_memory=1.0)
    service.queue._most_bytes = MEGABYTES * 1e6
    results, refused, over = {}, [], []
    with serving(service) as address:
        threads = [
            threading.Thread(target=run, args=(address, range(start, JOBS, CLIENTS), results, refused))
            for start in range(CLIENTS)
        ]
        with httpx.Client(base_url=address) as client:
            blockers = [  # they fill the lanes and the queue, so that the limit is met
                client.post("/v1/inpaint", files={"image": photo(), "mask": box()}, data={"method": "repaint"}).json()[
                    "id"
                ]
                for _ in range(service.options.lanes + LIMIT)
            ]
            for thread in threads:
                thread.start()
            while len(refused) < CLIENTS:
                time.sleep(0.01)
            for id in blockers:
                assert client.delete(f"/v1/jobs/{id}").status_code == 200
            while any(thread.is_alive() for thread in threads):
                health = client.get("/v1/health").json()
                if health["waiting"] > LIMIT or service.queue.bytes > 2 * MEGABYTES * 1e6:
                    over.append(health)
                time.sleep(0.02)
    assert not over
    assert sorted(results) == list(range(JOBS))
    assert service.queue.states()["done"] == JOBS
    assert service.queue.states()["cancelled"] == len(blockers)
    inpainter, hole = service.fillers["tiny"].inpainter, pixels(box()) == 255
    for number, request in enumerate(REQUESTS):
        request = {**request, "steps": None} if request["method"] == "mean" else request
        alone = inpainter(Image.fromarray(pixels(photo())), hole, size_policy="crop", names="photo.png", **request)
        np.testing.assert_array_equal(pixels(results[number]), np.asarray(alone.images[0]), err_msg=str(request))
