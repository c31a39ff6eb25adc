"""Full, locked, read-only, unreachable, killed: it is said in words, and what was acknowledged is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from place import Place, pair, picture, schema, told, voted
from sqlalchemy import make_url, text

from diffalign.errors import DiffalignError, RunError
from diffalign.preferences import Pictures, Store

VOTER = """
import sys
from diffalign.preferences import Store
store = Store.open(sys.argv[1], pictures=sys.argv[2])
pictures = sys.argv[3:5]
n = 0
while True:
    n += 1
    store.vote(store.show("ann", pictures), "ann", "a", token=f"{sys.argv[5]}-{n}")
    print(f"{sys.argv[5]}-{n}", flush=True)
"""


def test_killed_after_its_word_every_vote_is_there(store, place):
    pictures, acknowledged, rng = pair(store), [], random.Random(0)
    for life in range(2):
        voter = subprocess.Popen(
            [sys.executable, "-c", VOTER, place.where, str(place.pictures), *pictures, str(life)],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        first = voter.stdout.readline()
        time.sleep(rng.uniform(0.05, 0.4))
        voter.send_signal(signal.SIGKILL)
        acknowledged += [first.strip(), *voter.stdout.read().split()]
        assert voter.wait() == -signal.SIGKILL
    assert len(acknowledged) > 10
    with place.open().database.reading() as session:
        tokens = {row for (row,) in session.connection().exec_driver_sql("SELECT token FROM answers")}
    assert set(acknowledged) <= tokens
    assert len(tokens) <= len(acknowledged) + 2  # each life may have been killed before it said so
    voted(store, "ann", "b", pictures)
    assert store.count() == len(tokens) + 1


def test_locked_by_another_it_says_so_and_goes_on(store, place):
    pictures = pair(store)
    voted(store, "ann", "a", pictures)
    hasty = place.open(busy_seconds=0.2)
    with place.engine().connect() as other:
        place.hold(other)
        with pytest.raises(RunError, match=r"is locked by somebody else.*recorded before is untouched"):
            hasty.show("ann", pictures)
        other.rollback()
    voted(hasty, "ann", "b", pictures)
    assert [vote.choice for vote in store.votes()] == ["a", "b"]


def test_a_short_lock_is_waited_for(store, place):
    shown = store.show("ann", pair(store))
    voter = threading.Thread(target=store.vote, args=(shown, "ann", "a"))
    with place.engine().connect() as other:
        place.hold(other)
        voter.start()
        voter.join(0.5)
        assert voter.is_alive()
        other.rollback()
    voter.join()
    assert store.count() == 1


@contextmanager
def mounted(folder, options="mode=755"):
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size=400k,{options}", "tmpfs", str(folder)],
            check=True, capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine does not let us mount a small file system: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk") as disk:
        yield disk


@contextmanager
def tablespace(server):
    """The name of a tablespace on a small disk, and that disk."""
    name = f"small_{uuid.uuid4().hex}"
    with told(server) as connection, TemporaryDirectory(dir="/tmp") as folder:
        data = Path(connection.scalar(text("SHOW data_directory")))
        if not data.exists():
            pytest.skip("the server's files are on another machine")
        os.chmod(folder, 0o755)  # or the server's user cannot pass
        with mounted(Path(folder) / "disk", f"mode=700,uid={data.stat().st_uid}") as disk:
            connection.execute(text(f"CREATE TABLESPACE {name} LOCATION '{disk}'"))
            yield name, disk
            connection.execute(text(f"DROP TABLESPACE {name}"))


@pytest.fixture(params=["sqlite", "postgresql"])
def small_place(request, tmp_path):
    """A place whose database lies on a small disk, and that disk."""
    if request.param == "sqlite":
        disk = request.getfixturevalue("small_disk")
        yield Place(str(disk / "votes.db"), tmp_path / "pictures"), disk
        return
    server = request.getfixturevalue("server")
    with (
        tablespace(server) as (name, disk),
        schema(server, tmp_path / "pictures", default_tablespace=name) as place,
    ):
        yield place, disk


def remount(disk, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def until_it_fails(act):
    """What an act on 0, 1, … returned before it raised, and what it raised."""
    done = []
    try:
        while True:
            done.append(act(len(done)))
    except RunError as error:
        return done, str(error)


def test_a_full_disk_loses_no_vote(small_place):
    place, disk = small_place
    store = place.open()
    pictures = pair(store)
    cast, says = until_it_fails(lambda n: voted(store, "ann", "a", pictures, token=str(n)))
    assert "is full. Free some space" in says
    assert store.count() == len(cast) > 0
    remount(disk, "size=4m")
    voted(store, "ann", "b", pictures)
    store.close()
    again = place.open()
    assert [vote.choice for vote in again.votes()] == ["a"] * len(cast) + ["b"]
    again.close()


def test_a_full_disk_keeps_no_half_of_a_picture(small_disk):
    pictures = Pictures(small_disk / "pictures")
    noise = torch.Generator().manual_seed(0)
    kept, says = until_it_fails(
        lambda _: pictures.add(torch.rand(3, 64, 64, generator=noise), prompt="a cat", model="base")
    )
    assert "could not keep a picture" in says
    assert "space" in says
    assert {path.name for path in pictures.folder.iterdir()} == {f"{name}.png" for name in kept}
    assert all(pictures.info(name).prompt == "a cat" for name in kept)


def test_a_read_only_disk_is_said(small_disk, tmp_path):
    store = Store.open(small_disk / "votes.db", pictures=tmp_path / "pictures")
    voted(store, "ann", "a", pair(store))
    store.close()
    remount(small_disk, "ro")
    with pytest.raises(RunError, match="read-only"):
        voted(Store.open(small_disk / "votes.db", pictures=tmp_path / "pictures"), "ann", "b", pair(store))
    remount(small_disk, "rw")
    again = Store.open(small_disk / "votes.db", pictures=tmp_path / "pictures")
    assert again.count() == 1
    again.close()


def barred(place):
    """The same place for somebody who may only read."""
    if place.sqlite:
        os.chmod(place.where, 0o444)
        if os.access(place.where, os.W_OK):
            pytest.skip("root writes where it is not allowed to; the read-only disk is tried above")
        return place
    url = make_url(place.where)
    options = f"{url.query['options']} -cdefault_transaction_read_only=on"
    url = url.update_query_dict({"options": options})
    return Place(url.render_as_string(hide_password=False), place.pictures)


def test_who_may_only_read_reads_and_is_told(place):
    store = place.open()
    pictures = pair(store)
    voted(store, "ann", "a", pictures)
    store.close()
    reader = barred(place).open()
    assert reader.count() == 1
    with pytest.raises(RunError, match="read-only"):
        reader.show("ann", pictures)
    reader.close()


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be read" * 30, b"\x89PNG"])
def test_a_file_that_is_no_database_is_left_alone(tmp_path, content):
    (tmp_path / "votes.db").write_bytes(content)
    with pytest.raises(DiffalignError, match=r"votes.db is not a database of votes"):
        Store.open(tmp_path / "votes.db")
    assert (tmp_path / "votes.db").read_bytes() == content


@pytest.mark.parametrize(
    "where",
    ["mysql://root:secret@host/votes", "postgresql+psycopg2://host/votes", "http://host", "://", "x://"],
)
def test_a_url_of_something_else_is_refused_without_its_password(where):
    with pytest.raises(DiffalignError, match="Give the path of a file") as error:
        Store.open(where)
    assert "secret" not in str(error.value)


def test_memory_is_no_place_for_votes():
    for where in (":memory:", "sqlite://", "sqlite:///:memory:"):
        with pytest.raises(DiffalignError, match="would be lost"):
            Store.open(where)


def test_a_folder_that_does_not_exist_is_said(tmp_path):
    with pytest.raises(RunError, match="missing"):
        Store.open(tmp_path / "nowhere" / "votes.db")


def test_a_missing_driver_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(DiffalignError, match=r"pip install 'diffalign\[demo\]'"):
        Store.open("postgresql://host/votes", pictures="pictures")


def test_a_server_that_is_not_there_is_said_without_the_password(tmp_path):
    pytest.importorskip("psycopg")
    with pytest.raises(RunError, match="cannot be reached") as error:
        Store.open("postgresql+psycopg://ann:secret@127.0.0.1:1/votes", pictures=tmp_path)
    assert "secret" not in str(error.value)


def test_a_server_needs_a_folder_of_pictures():
    with pytest.raises(DiffalignError, match="pictures=FOLDER"):
        Store.open("postgresql://host/votes")


def test_picture_of_nobody(store):
    """An id that was never added is missing, too."""
    with pytest.raises(RunError, match="is missing"):
        store.show("ann", [picture(store), "0" * 64])
