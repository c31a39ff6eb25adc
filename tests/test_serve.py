"""`diffalign reward serve`: equal scores, who may ask, how much, and many at once. The servers are real."""

from __future__ import annotations

import base64
import io
import json
import math
import pickle
import socket
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import served
import torch
from PIL import Image

from diffalign import registry
from diffalign.errors import DiffalignError
from diffalign.serving import serve, wire
from diffalign.serving.batcher import Batcher, Job, packed
from diffalign.serving.remote import connect

TOKEN = "sesam"
HTTP = httpx2.Client(verify=False, timeout=60)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return served.write(tmp_path_factory.mktemp("rewards"))


@pytest.fixture(scope="module")
def url(file):
    with served.serving(f"{file}:Bright", "scale=2.0", "--port", "0", "--merge-ms", "50") as (url, _):
        yield url


@pytest.fixture(scope="module")
def guarded(file):
    """Bound wider, so with a token; small limits."""
    limits = ["--max-batch", "4", "--max-waiting", "2", "--max-megapixels", "0.01"]
    options = [f"{file}:Pictures", "--port", "0", "--host", "0.0.0.0", *limits]
    with served.serving(*options, DIFFALIGN_REWARD_TOKEN=TOKEN) as (url, _):
        yield url


@pytest.fixture
def local(file):
    return registry.reward(f"{file}:Bright", scale=2.0)


def post(url, body, token=TOKEN, kind="application/json", **more):
    headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
    return HTTP.post(f"{url}/score", content=body, headers=headers, **more)


def asking(*frames: bytes, prompts=None, **more) -> str:
    prompts = prompts or [""] * len(frames)
    items = [
        {"prompt": p, "frames": [base64.b64encode(f).decode()]} for p, f in zip(prompts, frames, strict=True)
    ]
    return json.dumps({"items": items, **more})


def picture(size=(12, 16), mode="RGB", kind="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


# -- equal scores -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3, 16, 12), (40, 3, 8, 8), (2, 3, 3, 16, 12), (2, 1, 3, 16, 12)])
def test_everything_a_reward_returns_arrives_bit_for_bit(url, local, shape):
    images = served.pictures(math.prod(shape[:-3]), *shape[-2:]).reshape(shape)
    prompts = [f"Πρόμπτ {k} 🍎" for k in range(len(images))]
    there, here = connect(url)(images, prompts), local(images, prompts)
    assert there.value.dtype == torch.float32
    assert torch.equal(there.value, here.value)
    assert torch.equal(there.parts["odd"], here.parts["odd"])
    assert there.uncertainty.dtype == torch.float64
    assert torch.equal(there.uncertainty, here.uncertainty)


def test_finer_pictures_score_as_they_would_be_saved(url, local):
    images = torch.rand(4, 3, 9, 9)
    saved = (images * 255).round() / 255
    assert torch.equal(connect(url)(images, [""] * 4).value, local(saved, [""] * 4).value)


def test_lossless_webp_is_taken_too(url, local):
    pixels = (served.pictures(1)[0] * 255).round().byte()
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "WEBP", lossless=True)
    answer = post(url, asking(buffer.getvalue())).json()
    assert answer["value"]["values"] == local(pixels[None] / 255, [""]).value.tolist()


def test_the_card_says_what_is_served(url):
    card = connect(url).card
    assert card.name.endswith(":Bright")
    assert card.arguments == {"scale": 2.0}
    assert card.capabilities["video"]
    assert card.versions["torch"] == torch.__version__


# -- who may ask ------------------------------------------------------------------------------


def test_wider_than_loopback_needs_a_token():
    with pytest.raises(DiffalignError, match="can be reached from other machines, so a token is needed"):
        serve.bind("0.0.0.0", 0, None)
    for host in ("127.0.0.1", "localhost"):
        serve.bind(host, 0, None).close()


def test_the_command_refuses_it_with_exit_code_2(file):
    command = [sys.executable, "-m", "diffalign", "reward", "serve", f"{file}:Bright", "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "token" in done.stderr


def test_a_taken_port_is_an_error_that_says_so():
    taken = socket.create_server(("127.0.0.1", 0))
    with taken, pytest.raises(DiffalignError, match="Choose another --port"):
        serve.bind("127.0.0.1", taken.getsockname()[1], None)


@pytest.mark.parametrize("token", ["Sesam", "sesame", "ses"])
def test_nothing_but_health_without_the_token(guarded, token):
    assert HTTP.get(f"{guarded}/health").status_code == 200
    for headers in ({}, {"Authorization": f"Bearer {token}"}):
        assert HTTP.get(f"{guarded}/card", headers=headers).status_code == 401
    assert post(guarded, asking(picture()), token).status_code == 401


def test_the_token_may_be_given_or_in_the_environment(guarded, monkeypatch):
    with pytest.raises(DiffalignError, match="401"):
        connect(guarded)
    assert connect(guarded, token=TOKEN).card
    monkeypatch.setenv(wire.TOKEN, TOKEN)
    assert connect(guarded).card


# -- how much ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (422, asking(*[picture()] * 5), "at most 4"),
        (422, asking(picture((200, 100))), "at most 10000"),
        (422, asking(*[picture((60, 60))] * 3), "10800 pixels in one request"),
        (422, asking(bomb(13_000)), "at most 10000"),
        (422, asking(bomb(50_000)), "2500000000 pixels"),
        (422, asking(picture(), prompts=["x" * 10_001]), "10001 characters"),
        (413, asking(picture(), prompts=["x" * 2_000_000]), "bytes"),
        (422, asking(picture((8, 8)), picture((8, 9))), "send one size"),
        (422, asking(picture(kind="JPEG")), "not a PNG or WebP"),
        (422, asking(picture(mode="I;16")), "RGB of 8 bits"),
        (422, asking(picture(mode="RGBA")), "RGB of 8 bits"),
        (422, asking(picture()[:50]), "not a PNG or WebP"),
        (422, asking(pickle.dumps({"a": 1})), "not a PNG or WebP"),
        (422, asking(picture(), video=True), "scores pictures, not video"),
        (422, asking(), "at least 1 item"),
        (422, "{", "JSON"),
        (422, '{"items": [], "extra": 1}', "extra"),
    ],
)  # fmt: skip
def test_what_is_too_much_or_not_a_picture_is_refused_with_the_reason(guarded, status, body, says):
    answer = post(guarded, body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


def test_a_request_holds_only_so_many_frames():
    images = torch.zeros(3, 5, 3, 1, 1, dtype=torch.uint8)
    request = wire.encode(images, ["", "", ""])
    assert wire.decode(request, wire.Limits(frames=15)).shape == images.shape
    with pytest.raises(DiffalignError, match="15 frames in one request; at most 14"):
        wire.decode(request, wire.Limits(frames=14))
    assert wire.Limits(frames=14).fit(5, 5) == 2


def test_only_json_is_read(guarded):
    assert post(guarded, asking(picture()), kind="text/plain").status_code == 415


def test_a_client_keeps_to_the_limits_by_itself(guarded):
    reward = connect(guarded, token=TOKEN)
    assert reward(served.pictures(10, 50, 50), [""] * 10).parts["batch"].tolist() == [4.0] * 8 + [2.0] * 2
    assert reward(served.pictures(5, 50, 100), [""] * 5).parts["batch"].tolist() == [2.0] * 4 + [1.0]
    with pytest.raises(DiffalignError, match="pictures, not video"):
        reward(served.pictures(2)[:, None], [""] * 2)


# -- many at once -----------------------------------------------------------------------------


def health(url, key):
    return HTTP.get(f"{url}/health").json()[key]


@pytest.fixture
def gate(tmp_path):
    """The prompt that keeps the server busy, and what ends that."""
    return f"until {tmp_path / 'open'}", (tmp_path / "open").touch


def held(pool, url, hold):
    """Keep the server busy; the number of its batches then."""
    before = health(url, "batches")
    pool.submit(connect(url), served.pictures(1, 5, 5), [hold])
    assert served.until(lambda: health(url, "batches") == before + 1)
    return before + 1


def at_once(url, gate, *asked):
    """Every (images, prompts) by a client of its own while the server is busy: their futures, and the batches."""
    (hold, release), clients = gate, [connect(url, tries=1) for _ in asked]
    with ThreadPoolExecutor(len(asked) + 1) as pool:
        before = held(pool, url, hold)
        results = [pool.submit(client, *one) for client, one in zip(clients, asked, strict=True)]
        assert served.until(lambda: health(url, "queued") == len(asked))
        release()
    return results, health(url, "batches") - before


def test_concurrent_clients_share_a_batch_and_get_their_own(url, local, gate):
    asked = [(served.pictures(2, seed=k), ["a", "b"]) for k in range(8)]
    results, batches = at_once(url, gate, *asked)
    assert batches == 1
    for (images, prompts), result in zip(asked, results, strict=True):
        assert result.result().parts["batch"].tolist() == [16.0, 16.0]
        torch.testing.assert_close(result.result().value, local(images, prompts).value, rtol=1e-6, atol=0)


def test_sizes_are_not_mixed(url, gate):
    sizes = [(10, 8), (3, 9), (10, 8), (2, 9)]
    results, batches = at_once(url, gate, *[(served.pictures(n, h), [""] * n) for n, h in sizes])
    assert [int(r.result().parts["batch"][0]) for r in results] == [20, 5, 20, 5]
    assert batches == 2


def test_no_batch_is_overfull():
    sizes = [(4, 8), (3, 9), (4, 8), (4, 8), (12, 8), (3, 9)]
    jobs = [Job(torch.zeros(n, 3, h, h, dtype=torch.uint8), [""] * n) for n, h in sizes]
    batches = [[(len(job), job.images.shape[-1]) for job in batch] for batch in packed(jobs, 10)]
    assert batches == [[(4, 8), (4, 8)], [(4, 8)], [(3, 9), (3, 9)], [(12, 8)]]


@pytest.mark.parametrize(
    ("bad", "status", "says"),
    [
        ("raise", 500, "no score for this one"),
        ("exit", 500, "SystemExit"),
        ("nan", 500, "nan"),
        ("refuse", 422, "no words to look for"),
    ],
)
def test_one_bad_request_fails_alone_and_leaks_no_traceback(url, local, gate, bad, status, says):
    asked = [(served.pictures(2, seed=k), ["a", "b"]) for k in range(3)]
    results, _ = at_once(url, gate, *asked, (served.pictures(2), ["", bad]))
    for (images, prompts), result in zip(asked, results, strict=False):
        torch.testing.assert_close(result.result().value, local(images, prompts).value)
    message = str(results[-1].exception())
    assert says in message
    assert str(status) in message
    assert "Traceback" not in message
    assert ".py'" not in message.replace(".py:Bright'", "")


def test_a_full_queue_says_come_again_and_a_patient_client_gets_through(guarded, gate):
    (hold, release), reward = gate, connect(guarded, token=TOKEN, tries=50)
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(post, guarded, asking(picture(), prompts=[hold])) for _ in range(2)]
        assert served.until(lambda: health(guarded, "under_way") == 2)
        refused = post(guarded, asking(picture()))
        scores = pool.submit(reward, served.pictures(1), [""])
        release()
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.result().status_code for answer in held] == [200, 200]
    assert scores.result().value.shape == (1,)


def test_what_nobody_waits_for_is_not_scored(url, gate):
    (hold, release), before = gate, health(url, "scored")
    with ThreadPoolExecutor(1) as pool:
        held(pool, url, hold)
        with pytest.raises(httpx2.ReadTimeout):
            post(url, asking(picture((7, 7))), timeout=0.5)
        assert served.until(lambda: health(url, "under_way") == 1)
        release()
    connect(url)(served.pictures(1), [""])
    assert health(url, "scored") == before + 2


def test_without_waiting_nothing_is_merged(local):
    batcher = Batcher(local, "bright", items=32, wait=0.0)
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    results = [batcher.submit(Job(images, [""])) for _ in range(3)]
    assert [r.result().parts["batch"].tolist() for r in results] == [[1.0]] * 3


# -- light ------------------------------------------------------------------------------------


def test_the_server_needs_few_packages(tmp_path):
    """What an isolated environment needs, docs/rewards.md says; nothing else may be imported on the way."""
    heavy = [
        "accelerate",
        "typer",
        "diffusers",
        "transformers",
        "yaml",
        "rich",
        "peft",
        "safetensors",
        "httpx2",
    ]
    lines = [
        f"import sys\nfor name in {heavy}: sys.modules[name] = None",
        "import diffalign.serving.isolated_server",
        "from diffalign.serving import serve",
        "print(serve.make('jpeg_compressibility', {}).card.name)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout == "jpeg_compressibility\n", done.stderr
