"""An app that ends leaves nothing but votes, pictures and runs behind."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from app.serving import scribbling


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_no_temporary_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals):
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    server = scribbling(tmp_path)
    try:
        assert list(temporary.glob("diffalign-*"))
        server.process.send_signal(how)
        server.process.wait(30)
    finally:
        server.stop()
    assert list(temporary.glob("diffalign-*")) == []
