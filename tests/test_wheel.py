"""The wheel holds every package and data file, though an editable install would hide it if it did not."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import pytest
from packages import SHIPPED, copy_source, tracked


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> set[str]:
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    copy_source(source)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_every_tracked_file_ships_under_its_package(names):
    expected = {"/".join([SHIPPED[path.split("/")[0]], *path.split("/")[1:]]) for path in tracked()}
    assert expected - names == set()


def test_nothing_generic_lands_in_site_packages(names):
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(SHIPPED.values())
