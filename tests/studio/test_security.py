"""Who may ask, what they may send, and what they learn: hosts, origins, tokens, limits, names and paths."""

import asyncio
import json
import socket
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from rad.__main__ import main
from rad.images.codecs import images_up_to
from rad.inpainting.canvas.windows import _cuts
from rad.studio import app as app_module
from rad.studio.app import create_app
from rad.studio.command import bind, choose_token, url
from rad.studio.guard import HEADERS
from rad.studio.inputs import without_paths
from rad.studio.options import StudioOptions
from rad.studio.uploads import Refused, _limited
from tests.studio.server import box, make_service, photo, png, serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def service(adapter):
    service = make_service(adapter, max_upload=0.2, max_megapixels=0.05)
    yield service
    service.queue.close()


@pytest.fixture(scope="module")
def client(service):
    return TestClient(create_app(service), base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:7860", True),
        ("localhost:7860", True),
        ("LOCALHOST", True),
        ("[::1]:7860", True),
        ("evil.example:7860", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.1.5:7860", False),
        ("localhost:7860@evil.example", False),
        ("", False),
    ],
)
def test_only_names_of_this_machine_reach_a_local_server(client, host, allowed):
    for path in ("/", "/v1/models", "/static/x.js"):
        status = client.get(path, headers={"host": host}).status_code
        assert (status == 403) != allowed


def test_a_second_host_is_refused(client):
    for second in ("evil.example", "localhost"):
        assert client.get("/", headers=[("host", "localhost"), ("host", second)]).status_code == 403


def test_other_hosts_are_named_or_addresses(service):
    service_options = StudioOptions(host="0.0.0.0", allow_host=["studio.example.org"])
    from rad.studio.guard import Guard

    guard = Guard(create_app(service), service_options, None)
    assert all(
        guard._is_known(host) for host in ("192.168.1.5:7860", "studio.example.org", "localhost:1", "[fe80::1]:2")
    )
    assert not guard._is_known("evil.example")


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}, True),
        ({"origin": "http://127.0.0.1:7861"}, False),
        ({"origin": "http://localhost:7860"}, False),
        ({"origin": "null"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "none"}, True),
    ],
)
def test_pages_of_other_origins_change_nothing(client, headers, allowed):
    assert (client.post("/v1/mask", headers=headers).status_code == 403) != allowed
    assert (client.delete("/v1/jobs/x", headers=headers).status_code == 403) != allowed


def test_a_token_is_needed_for_the_api_but_not_for_the_page(service):
    client = TestClient(create_app(service, token="correct-horse"), base_url="http://127.0.0.1")
    for path, open in {
        "/": True,
        "/v1/health": True,
        "/v1/models": False,
        "/v1/jobs/x": False,
        "/v1/metrics": False,
    }.items():
        assert (client.get(path).status_code != 401) == open, path
    for value in (
        "",
        "Bearer",
        "Bearer wrong",
        "correct-horse",
        "Basic correct-horse",
        "Bearer correct-hörse".encode(),
    ):
        answer = client.get("/v1/models", headers={"authorization": value})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "correct" not in answer.text
    assert client.get("/v1/models?token=correct-horse").status_code == 401
    assert client.get("/v1/models", headers={"authorization": "Bearer correct-horse"}).status_code == 200


def test_every_answer_has_the_headers(client):
    for path in ("/", "/v1/models", "/v1/none", "/static/none.js"):
        headers = client.get(path).headers
        assert {name: headers.get(name) for name in HEADERS} == HEADERS
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "http:" not in policy
    assert client.get("/v1/models", headers={"host": "evil.example"}).headers["x-content-type-options"] == "nosniff"
    assert not any(name.startswith("access-control") for name in client.get("/v1/models").headers)


def test_static_files_have_their_types_and_stay_in_their_folder(service, tmp_path, monkeypatch):
    (tmp_path / "static" / "js").mkdir(parents=True)
    (tmp_path / "static" / "js" / "main.js").write_text("export {}")
    (tmp_path / "static" / "index.html").write_text("<!doctype html>")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "static" / "link").symlink_to(tmp_path / "secret.txt")
    monkeypatch.setattr(app_module, "STATIC", tmp_path / "static")
    client = TestClient(create_app(service), base_url="http://127.0.0.1")
    script = client.get("/static/js/main.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert script.headers["cache-control"] == "no-cache"
    assert client.get("/static/js/main.js", headers={"if-none-match": script.headers["etag"]}).status_code == 304
    assert client.get("/").headers["content-type"].startswith("text/html")
    for path in (
        "../secret.txt",
        "%2e%2e/secret.txt",
        "..%2fsecret.txt",
        "link",
        "js/../../secret.txt",
        "/etc/passwd",
        "%00",
    ):
        assert client.get(f"/static/{path}").status_code in (404, 405), path


@pytest.mark.slow
def test_large_requests_are_refused_before_and_while_they_arrive(client, adapter):
    assert client.post("/v1/image", files={"image": bytes(300_000)}).status_code == 413
    many = {f"f{number}": "x" for number in range(100)}
    assert client.post("/v1/inpaint", files={"image": photo()}, data=many).status_code == 422
    with serving(make_service(adapter, max_upload=0.2)) as address:
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = "POST /v1/image HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"
            connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
            part = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'
            for data in (part, *[bytes(10_000)] * 25):  # without an end
                connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            connection.settimeout(10)
            answer = b""
            while not answer.endswith(b"}"):  # the server may keep the connection open
                received = connection.recv(10_000)
                assert received, answer
                answer += received
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"0.2 MB" in answer


@pytest.mark.parametrize("declared", ["", "25", "-1", "9" * 30])
def test_bytes_beyond_the_limit_are_refused_as_they_arrive_whatever_was_declared(declared):
    read, counted = [], []

    async def stream():
        for _ in range(5):
            read.append(10)
            yield bytes(10)

    request: Any = SimpleNamespace(headers={"content-length": declared}, stream=stream)

    async def received(most):
        return [chunk async for chunk in _limited(request, most, counted.append)]

    assert len(asyncio.run(received(50))) == 5
    read.clear()
    counted.clear()
    with pytest.raises(Refused, match="the limit of this server") as refused:
        asyncio.run(received(20))
    assert refused.value.status == 413
    assert (len(read), counted) == ((0, []) if declared == "25" else (3, [10, 10]))


def test_too_many_windows_are_refused(client):
    files = {"image": photo(220, 220), "mask": box(220, 220, area=(0, 220, 0, 220))}
    assert client.post("/v1/inpaint", files=files, data={"steps": 1}).status_code == 202
    answer = client.post("/v1/inpaint", files=files, data={"steps": 1, "margin": 7})
    assert answer.status_code == 413
    assert "the hole needs more than 1562 windows" in answer.json()["error"]


def test_the_windows_of_single_pixels_are_not_all_counted(client, monkeypatch):
    cuts = []
    monkeypatch.setattr("rad.inpainting.canvas.windows._cuts", lambda *args: cuts.append(args) or _cuts(*args))
    mask = np.zeros((220, 220), np.uint8)
    mask[::2, ::2] = 255
    answer = client.post("/v1/inpaint", files={"image": photo(220, 220), "mask": png(mask)}, data={"steps": 1})
    assert answer.status_code == 413
    assert len(cuts) < 110 * 110 / 2  # pixels


def test_a_slow_request_is_ended(adapter, monkeypatch):
    monkeypatch.setattr("rad.studio.service.UPLOAD_SECONDS", 0.3)
    head = b"POST /v1/mask HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
    with (
        serving(make_service(adapter)) as address,
        socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection,
    ):
        connection.sendall(head)
        connection.settimeout(10)
        answer = b"".join(iter(lambda: connection.recv(10_000), b""))  # until the server closes
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 0.3 seconds" in answer


def test_json_of_many_values_is_refused_before_it_is_parsed(client, monkeypatch):
    monkeypatch.setattr("rad.studio.uploads.json.loads", None)
    for text in (b"[" * 30_000, b"[" + b"0," * 30_000 + b"0]"):
        answer = client.post("/v1/inpaint", content=text, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert "more than 20000 values" in answer.text


def test_requests_share_the_memory_for_their_bytes(service, client, monkeypatch):
    monkeypatch.setattr(service._arriving, "most", 50_000)
    with service._arriving.request() as count:
        count(45_000)  # of another request, which has not ended
        for kind in ({"files": {"image": bytes(10_000)}}, {"json": {"image": "x" * 10_000}}):
            answer = client.post("/v1/image", **kind)
            assert answer.status_code == 429
            assert int(answer.headers["retry-after"]) > 0
        assert client.post("/v1/image", files={"image": photo(8, 8)}).status_code == 200
    assert client.post("/v1/image", files={"image": bytes(10_000)}).status_code == 422
    assert service._arriving.bytes == 0


def bomb(side: int) -> bytes:
    """A small PNG file of side x side pixels."""
    file = BytesIO()
    Image.new("1", (8, 8)).save(file, format="PNG")
    data = bytearray(file.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize("limit", [0.05, 100])
def test_too_many_pixels_are_refused_before_they_are_decoded(client, limit):
    for path, files in (
        ("image", {"image": bomb(50_000)}),
        ("mask", {"mask": bomb(50_000)}),
        ("mask", {"mask": bomb(1000)}),
    ):
        with images_up_to(limit):  # 0.05: the server's; otherwise Pillow's own limit
            answer = client.post(f"/v1/{path}", files=files)
        assert answer.status_code == 413, answer.text
        assert "0.05 megapixels" in answer.json()["error"]
    answer = client.post("/v1/image", files={"image": bomb(1000)})
    assert answer.status_code == 413
    assert "1000x1000 pixels" in answer.json()["error"]
    samples = client.post(
        "/v1/inpaint", files={"image": photo(200, 200), "mask": box(200, 200)}, data={"num_samples": 2}
    )
    assert samples.status_code == 413
    assert "2 samples of 200x200" in samples.json()["error"]


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "mine.py:Mine"},
        {"method": "/tmp/mine.py:Mine"},
        {"method": "m2s", "set": json.dumps({"coarse": "/etc"})},
        {"method": "lama", "set": json.dumps({"file": "/etc/hosts"})},
        {"method": "grow", "set": json.dumps({"method": "/tmp/mine.py:Mine"})},
        {"model": "../../etc"},
        {"model": "/etc"},
        {"name": "../../a.png"},
        {"name": 'a"\r\nset-cookie: x.png'},
        {"name": "a/b.png"},
        {"name": ".hidden.png"},
        {"name": "-rf.png"},
        {"name": "a" * 101},
        {"name": "a.zip"},
        {"name": "bïld.png"},
    ],
)
def test_names_and_methods_of_clients_are_no_paths(client, fields, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    answer = client.post("/v1/inpaint", files={"image": photo(), "mask": box()}, data={"steps": 2, **fields})
    assert answer.status_code == 422
    assert not ran.exists()


@pytest.mark.parametrize(
    "name", ['a"; x="b.png', "../a.png", "a\\b.png", "ä.png", "a.png\0", "<script>.png", "x" * 300]
)
def test_hostile_names_of_uploads_are_replaced(client, name):
    answer = client.post("/v1/inpaint", files={"image": (name, photo()), "mask": ("m", box())}, data={"steps": 1})
    assert answer.status_code in (202, 422), answer.text
    if answer.status_code == 202:
        job = answer.json()["id"]
        client.get(f"/v1/jobs/{job}/events")
        header = client.get(f"/v1/jobs/{job}/images/0").headers["content-disposition"]
        assert header == 'attachment; filename="image-rad.png"'


def test_errors_name_no_path_of_the_server(client, adapter):
    texts = [
        client.post("/v1/inpaint", files={"image": photo(), "mask": box()}, data={"prompt": "a", "guidance": 2}).text,
        client.post("/v1/inpaint", files={"image": photo(), "mask": box()}, data={"method": "pilot"}).text,
        client.post("/v1/inpaint", files={"image": photo(), "mask": photo()}).text,
    ]
    for text in texts:
        assert "error" in text
        assert str(adapter.parent) not in text
        assert "/tmp" not in text
    assert (
        without_paths("a 'C:\\x\\y.png' and (/a/b-c/d.bin) or 1/2, http://h/p/q")
        == "a 'y.png' and (d.bin) or 1/2, http://h/p/q"
    )


def test_a_server_for_others_has_a_token():
    assert choose_token(StudioOptions()) is None
    assert choose_token(StudioOptions(token="my-own-token")) == "my-own-token"
    first, second = (choose_token(StudioOptions(host="0.0.0.0")) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first != second
    assert len(first) >= 32
    assert choose_token(StudioOptions(token="auto")) is not None
    assert url(StudioOptions(host="::1"), 80, None) == "http://[::1]:80/"
    assert url(StudioOptions(), 7860, "abcdefgh") == "http://127.0.0.1:7860/#token=abcdefgh"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--token", "short"], "--token"),
        (["--allow-host", "http://x"], "--allow_host"),
        (["--lanes", "0"], "--lanes 0"),
        (["--port", "70000"], "--port 70000"),
        (["--prot", "1"], "did you mean --port?"),
        (["--runtime", "onxx"], "did you mean onnx?"),
    ],
)
def test_wrong_options_are_explained(words, part, capsys):
    assert main(["studio", *words]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_a_port_in_use_and_a_missing_model_are_one_line(capsys):
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main(["studio", "--port", str(port)]) == 2
        assert capsys.readouterr().err == f"error: --port {port} is in use: give another one, or 0 for any free port\n"
    assert main(["studio", "--port", "0", "--checkpoint", "./missing"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["studio", "--port", "0", "--runtime", "onnx", "--checkpoint", "rad-nature32"]) == 2
    assert "--onnx OUT" in capsys.readouterr().err


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("rad.studio.command.find_spec", lambda name: None)
    assert main(["studio"]) == 2
    assert "[studio]" in capsys.readouterr().err
