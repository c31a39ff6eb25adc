"""The other side of `isolated`: serves one reward, and ends when the process that started it does.

Imports nothing that an environment with torch, numpy, pillow, fastapi and uvicorn alone would lack.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from diffalign.errors import DiffalignError


def main() -> None:
    """Serve what the first line of standard input asks for; sys.argv holds the folder to answer in."""
    folder = Path(sys.argv[1])
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    try:
        run(folder, **asked)
    except ImportError as error:
        needs = "torch, numpy, pillow, fastapi, uvicorn and what the reward imports"
        say(folder, {"error": f"{error}. This interpreter needs {needs}."})
        raise
    except DiffalignError as error:
        say(folder, {"error": str(error)})


def run(folder: Path, name: str, arguments: dict[str, Any], token: str) -> None:
    """Load the reward, then answer at a free port; requests of one run come one by one, none are merged."""
    from diffalign.serving import serve

    server = serve.make(name, arguments, wait=0.0, token=token)
    bound = serve.bind("127.0.0.1", 0, token)
    serve.serve(server, bound, lambda: say(folder, {"port": bound.getsockname()[1]}))


def say(folder: Path, answer: dict[str, Any]) -> None:
    """Tell the process that started this one; it sees a whole file or none."""
    part = folder / "said.part"
    part.write_text(json.dumps(answer))
    part.rename(folder / "said.json")


def _end_with_parent(folder: Path) -> None:
    """Its end of the pipe closes however it ends, SIGKILL included."""
    sys.stdin.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main()
