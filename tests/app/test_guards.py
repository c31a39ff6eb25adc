"""Users, passwords, limits, and where the app listens."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffalign.commands.cli import app
from diffalign.errors import DiffalignError
from diffalign_demo.app import members as members_module
from diffalign_demo.app.limits import PROMPT_LENGTH, Rate, Seats, check_prompt
from diffalign_demo.app.members import Members, add_user
from diffalign_demo.app.options import Options


@pytest.fixture
def users(tmp_path: Path) -> Path:
    add_user(tmp_path / "users.json", "ada", "correct horse")
    return tmp_path / "users.json"


def test_passwords_are_hashed_and_the_file_is_its_owners_alone(users: Path):
    assert "correct horse" not in users.read_text()
    assert "$argon2id$" in users.read_text()
    assert stat.S_IMODE(users.stat().st_mode) == 0o600


def test_the_right_password_alone_logs_in(users: Path):
    members = Members(users)
    assert members.user(members.login("ada", "correct horse")) == "ada"
    assert members.login("ada", "wrong horse") is None
    assert members.login("eve", "correct horse") is None


def test_forged_and_outdated_cookies_are_nobodys(users: Path, monkeypatch: pytest.MonkeyPatch):
    members = Members(users)
    cookie = members.login("ada", "correct horse")
    assert members.user(cookie[:-2] + "xx") is None
    assert members.user("ada") is None
    monkeypatch.setattr(members_module, "LASTS", -1)
    assert members.user(cookie) is None


def test_a_cookie_outlives_a_restart_and_ends_with_the_password(users: Path):
    cookie = Members(users).login("ada", "correct horse")
    members = Members(users)
    assert members.user(cookie) == "ada"
    add_user(users, "ada", "another horse")
    assert members.user(cookie) is None
    assert members.user(members.login("ada", "another horse")) == "ada"


@pytest.mark.parametrize(
    ("name", "password"), [("ada", "short"), ("", "long enough"), ("a\nb", "long enough")]
)
def test_users_that_are_not_added(tmp_path: Path, name: str, password: str):
    with pytest.raises(DiffalignError):
        add_user(tmp_path / "users.json", name, password)
    assert not (tmp_path / "users.json").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"users": 3, "secret": "x"}'])
def test_files_that_are_not_of_users(tmp_path: Path, content: str):
    (tmp_path / "users.json").write_text(content)
    with pytest.raises(DiffalignError, match="demo-user"):
        Members(tmp_path / "users.json")


def test_no_file_of_users(tmp_path: Path):
    with pytest.raises(DiffalignError, match=r"does not exist.*demo-user"):
        Members(tmp_path / "users.json")


def test_the_command_adds_a_user(tmp_path: Path):
    path = tmp_path / "users.json"
    done = CliRunner().invoke(
        app, ["demo-user", "bob", "--auth", str(path)], input="long enough\nlong enough\n"
    )
    assert done.exit_code == 0, done.output
    assert Members(path).login("bob", "long enough")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_addresses_need_users(host: str, users: Path):
    with pytest.raises(DiffalignError, match="demo-user"):
        Options(host=host).check()
    Options(host=host, auth=users).check()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_none(host: str):
    Options(host=host).check()


def test_requests_are_counted_for_each_user_alone():
    now = [0.0]
    rate = Rate(per_second=2, burst=3, clock=lambda: now[0])
    assert [rate.wait("ada") for _ in range(4)] == [0, 0, 0, 0.5]
    assert rate.wait("bob") == 0
    now[0] += 0.5
    assert rate.wait("ada") == 0
    assert rate.wait("ada") > 0


def test_a_user_has_one_seat_and_gives_it_back():
    seats = Seats(2)
    with seats.seat("ada"):
        with pytest.raises(DiffalignError, match="still running"), seats.seat("ada"):
            pass
        with seats.seat("bob"), pytest.raises(DiffalignError, match="2 others"), seats.seat("eve"):
            pass
    with seats.seat("ada"):
        pass


def test_seats_are_not_given_twice_at_once():
    seats, got, gate = Seats(3), [], threading.Barrier(20)

    def sit(n: int) -> None:
        gate.wait()
        try:
            with seats.seat(f"user {n}"):
                got.append(n)
                threading.Event().wait(0.2)
        except DiffalignError:
            pass

    threads = [threading.Thread(target=sit, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3


@pytest.mark.parametrize("text", ["", "  ", "a" * (PROMPT_LENGTH + 1), "a\x00b", "a\u202eb"])
def test_prompts_that_are_refused(text: str):
    with pytest.raises(DiffalignError):
        check_prompt(text)


def test_prompts_become_one_line():
    assert check_prompt("  red \n apple ") == "red apple"
