"""What the app answers over HTTP: votes, their limits, and all that it must not give away."""

from __future__ import annotations

import http.client
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from app.scribble import session
from app.serving import CLIENT, pressed, within
from sqlalchemy import event

from diffalign_demo.app import tab_align
from diffalign_demo.app.limits import BODY_BYTES, Rate
from diffalign_demo.app.members import Members, add_user
from diffalign_demo.app.session import Session

SECRET = "nobody may read this"


@pytest.fixture
def running(tmp_path: Path) -> Session:
    (tmp_path / "secret.txt").write_text(SECRET)
    return session(tmp_path, ("other",), busy_seconds=0.3)


@pytest.fixture
def url(running: Session) -> Iterator[str]:
    with within(running) as address:
        yield address


@pytest.fixture
def ada(url: str) -> Iterator[httpx.Client]:
    with client_of(url) as client:
        yield client


def client_of(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, **CLIENT)


def vote(pair: dict[str, Any], token: str = "token-0001", **more: Any) -> dict[str, Any]:
    return {"showing": pair["showing"], "choice": "a", "token": token} | more


def test_a_vote_by_http(ada: httpx.Client, running: Session):
    pair = ada.get("/api/pair").json()
    assert ada.get("/api/pair").json()["showing"] == pair["showing"]
    for picture in pair["pictures"]:
        assert ada.get(f"/api/picture/{picture}").content.startswith(b"\x89PNG")
    counts = ada.post("/api/vote", json=vote(pair, seconds=1.5)).json()
    assert counts == {"votes": 1, "worth": 100, "waits": 0}
    assert [(v.choice, v.seconds) for v in running.store.votes()] == [("a", 1.5)]


def test_skipping_and_undoing_by_http(ada: httpx.Client, running: Session):
    pair = ada.get("/api/pair").json()
    assert ada.post("/api/skip", json={"showing": pair["showing"]}).status_code == 200
    second = ada.get("/api/pair").json()
    assert second["showing"] != pair["showing"]
    ada.post("/api/vote", json=vote(second))
    undone = [ada.post("/api/undo", json={"token": "undo-0001"}).json() for _ in range(2)]
    assert [told["showing"] for told in undone] == [second["showing"]] * 2
    assert ada.get("/api/pair").json()["again"]
    assert running.store.count() == 0


def test_voters_are_not_told_which_model_it_is(ada: httpx.Client, running: Session):
    pair = ada.get("/api/pair", params={"mode": "judge"}).json()
    kept = running.store.pictures.read(pair["pictures"][0])
    assert b"scribble" in kept or b"other" in kept
    for picture in pair["pictures"]:
        answer = ada.get(f"/api/picture/{picture}")
        assert not any(word in answer.content for word in (b"scribble", b"other", b"diffalign"))


def test_users_without_names_are_kept_apart(url: str, ada: httpx.Client, running: Session):
    pair = ada.get("/api/pair").json()
    with client_of(url) as bob:
        assert bob.post("/api/vote", json=vote(pair)).status_code == 409
    assert ada.post("/api/vote", json=vote(pair)).status_code == 200
    (kept,) = running.store.votes()
    assert kept.user.startswith("guest-")
    assert ada.cookies["diffalign"] not in kept.user


@pytest.mark.parametrize(
    "body",
    [
        {"choice": "c"},
        {"token": "short"},
        {"token": "x" * 65},
        {"seconds": -1},
        {"seconds": "1e999"},
        {"showing": "x"},
        {"showing": 2**70},
        {"user": 3, "showing": None},
    ],
)
def test_votes_that_are_refused(ada: httpx.Client, running: Session, body: dict[str, Any]):
    pair = ada.get("/api/pair").json()
    answer = ada.post("/api/vote", json=vote(pair) | body)
    assert answer.status_code in (409, 422)
    assert running.store.count() == 0


def test_own_prompts(ada: httpx.Client):
    assert ada.post("/api/prompt", json={"prompt": "<script>alert(1)</script>"}).status_code == 202
    assert ada.get("/api/pair").json()["prompt"] == "<script>alert(1)</script>"
    for wrong in ("", "x" * 201, "x" * 10_000, "unspeakable"):
        assert ada.post("/api/prompt", json={"prompt": wrong}).status_code in (409, 422)


def test_too_large_requests_are_refused(ada: httpx.Client):
    def parts() -> Iterator[bytes]:
        for _ in range(BODY_BYTES // 1024 + 2):
            yield b"x" * 1024

    assert ada.post("/api/vote", content=b"x" * (BODY_BYTES + 1)).status_code == 413
    with suppress(httpx.TransportError):
        assert ada.post("/api/vote", content=parts()).status_code >= 400
    assert ada.get("/api/counts").status_code == 200


def test_too_many_requests_of_one_do_not_stop_another(tmp_path: Path):
    running = within(session(tmp_path), rate=Rate(per_second=0.01, burst=5))
    with running as url, client_of(url) as greedy, client_of(url) as modest:
        modest.get("/api/counts")
        codes = [greedy.get("/api/counts").status_code for _ in range(10)]
        assert codes[-1] == 429
        assert modest.get("/api/counts").status_code == 200


# -- what must not be read ----------------------------------------------------------------------


def raw(url: str, path: str, host: str | None = None) -> tuple[int, bytes]:
    """A request whose path nobody tidies."""
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", host or "127.0.0.1")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read()


DOORS = (
    "/api/picture/{}",
    "/gradio_api/file={}",
    "/file={}",
    "/gradio_api/file/{}",
    "/gradio_api/proxy={}",
    "/static/{}",
    "/assets/{}",
    "/gradio_api/custom_component/{}",
    "/{}",
)


@pytest.mark.parametrize("door", DOORS)
def test_no_file_outside_the_picture_store_is_read(url: str, running: Session, tmp_path: Path, door: str):
    secret = tmp_path / "secret.txt"
    link = running.store.pictures.path("0" * 64)
    link.symlink_to(secret)
    up = "../" * 12
    ways = [
        str(secret), f"{up}{str(secret)[1:]}", f"{up}etc/passwd", "/etc/passwd", f"file://{secret}", "file:///etc/passwd",
        str(secret).replace("/", "%2f"), f"..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{str(secret).replace('/', '%2f')}",
        "%252e%252e/" * 12 + "etc/passwd", "0" * 64, f"../{tmp_path.name}/secret.txt", str(link),
        str(running.options.votes),
        str(Path(__file__)), str(Path.cwd() / "pyproject.toml"), f"http://127.0.0.1:{url.rpartition(':')[2]}/secret.txt",
    ]  # fmt: skip
    for way in ways:
        status, body = raw(url, door.format(way))
        assert SECRET.encode() not in body, way
        assert b"root:" not in body
        assert b"SQLite format" not in body
        assert b"[build-system]" not in body
        assert b"def test_" not in body
        assert status >= 400 or b"<!doctype html" in body[:200].lower(), (way, status)


@pytest.mark.parametrize(
    "path", ["/gradio_api/upload", "/upload", "/gradio_api/process_recording", "/gradio_api/vibe-edit"]
)
def test_nothing_is_uploaded(ada: httpx.Client, path: str):
    answer = ada.post(path, files={"files": ("x.txt", b"x" * 10)})
    assert answer.status_code == 403


def test_the_app_answers_to_its_own_name_alone(url: str):
    assert raw(url, "/api/counts", host="evil.example")[0] == 421
    assert raw(url, "/api/counts", host="localhost:99")[0] == 200


# -- users and passwords ------------------------------------------------------------------------


@pytest.fixture
def named(tmp_path: Path) -> Iterator[tuple[str, Session]]:
    for name in ("ada", "bob"):
        add_user(tmp_path / "users.json", name, f"{name} and a horse")
    made = session(tmp_path, auth=tmp_path / "users.json")
    with within(made, Members(tmp_path / "users.json")) as url:
        yield url, made


def test_nothing_without_a_password(named: tuple[str, Session]):
    with client_of(named[0]) as client:
        for path in (
            "/api/pair",
            "/api/counts",
            "/api/lora",
            "/config",
            "/gradio_api/info",
            "/api/openapi.json",
            "/theme.css",
        ):
            assert client.get(path).status_code == 401, path
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        assert client.get("/", headers={"accept": "text/html"}).headers["location"] == "/login"
        assert client.get("/login").status_code == 200


def test_votes_belong_to_those_who_logged_in(named: tuple[str, Session]):
    url, made = named
    for name in ("ada", "bob"):
        with client_of(url) as client:
            login = client.post("/login", data={"name": name, "password": f"{name} and a horse"})
            assert login.status_code == 303
            assert "HttpOnly" in login.headers["set-cookie"]
            assert client.get("/", headers={"accept": "text/html"}).status_code == 200
            pair = client.get("/api/pair").json()
            assert client.post("/api/vote", json=vote(pair, f"{name}-token")).status_code == 200
            client.post("/logout")
            assert client.get("/api/pair").status_code == 401
    assert sorted(v.user for v in made.store.votes()) == ["ada", "bob"]


def test_wrong_passwords_run_out(named: tuple[str, Session]):
    with client_of(named[0]) as client:
        wrong = {"name": '"><script>alert(1)</script>', "password": "guess"}
        answers = [client.post("/login", data=wrong) for _ in range(14)]
    assert answers[0].status_code == 401
    assert answers[-1].status_code == 429
    assert all("<script>alert" not in answer.text for answer in answers)


# -- faults ---------------------------------------------------------------------------------------


def test_a_locked_database_says_so_and_loses_nothing(ada: httpx.Client, running: Session):
    pair = ada.get("/api/pair").json()
    other = sqlite3.connect(running.options.votes, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    answer = ada.post("/api/vote", json=vote(pair))
    assert answer.status_code == 503
    assert "locked" in answer.json()["detail"]
    other.execute("ROLLBACK")
    assert ada.post("/api/vote", json=vote(pair)).status_code == 200
    assert running.store.count() == 1


def test_a_full_database_says_so_and_loses_nothing(ada: httpx.Client, running: Session):
    engine, acknowledged = running.store.database._engine, 0
    with engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()

    def full(connection: Any, *rest: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    event.listen(engine, "checkout", full)
    while (answer := _one_vote(ada, acknowledged)).status_code == 200:
        acknowledged += 1
    event.remove(engine, "checkout", full)
    event.listen(
        engine, "checkout", lambda connection, *rest: connection.execute("PRAGMA max_page_count=9999999")
    )
    assert answer.status_code == 503
    assert "is full" in answer.json()["detail"]
    assert running.store.count() == acknowledged
    assert _one_vote(ada, acknowledged).status_code == 200
    assert running.store.count() == acknowledged + 1


def _one_vote(client: httpx.Client, number: int) -> httpx.Response:
    pair = client.get("/api/pair")
    return (
        client.post("/api/vote", json=vote(pair.json(), f"token-{number:04}"))
        if pair.status_code == 200
        else pair
    )


def test_a_missing_picture_is_told(ada: httpx.Client, running: Session):
    pair = ada.get("/api/pair").json()
    running.store.pictures.path(pair["pictures"][0]).unlink()
    answer = ada.get(f"/api/picture/{pair['pictures'][0]}")
    assert answer.status_code == 404
    assert "missing" in answer.json()["detail"]


def test_training_can_be_switched_off(tmp_path: Path):
    made = session(tmp_path, training=False)
    with within(made) as url, client_of(url) as client:
        trained = pressed(client, "Train from the votes", [tab_align.EVERYBODY, False])
    assert "No training run yet" in trained
    assert made.alignment.training.folder is None


def test_many_requests_of_one_user_get_one_pair(url: str, ada: httpx.Client):
    ada.get("/api/counts")
    answers: list[httpx.Response] = []

    def ask() -> None:
        with httpx.Client(base_url=url, cookies=ada.cookies, **CLIENT) as client:
            answers.append(client.get("/api/pair"))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert len({answer.json()["showing"] for answer in answers if answer.status_code == 200}) == 1
