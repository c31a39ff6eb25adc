"""Imports go one way, and importing the package stays light."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    "errors ranks bounds",
    "seeds grid losses credit reward",
    "steps combine lagrangian measure compose overlap wire batcher exchange remote subject differences conformance"
    " cost",
    "adapters attention capture conditioning encoder inference layout lengths loading placement policy predictor"
    " quantize schedulers shell stub template trajectory weights comfy",
    "walk recompute whole",
    "preferences prompts plugins checkpoint metrics isolated saving folder runfolder searchfolder",
    "run",
    "evaluate optimize calibrate live",
    "algorithms",
    "task found ledger tree altered mixed guided redraw voted trainer search seek",
    "arguments registry configfile rewardforms charts",
    "catalog scaffold pictures",
    "scoring",
    "named rewardspec serve isolated_server",
    "sharedconfig rewardarg",
    "config searchconfig",
    "build report drawing page outcome gallery",
    "progress trackers launch build_search searchwords launch_search doctor doctor_text score_text"
    " reward_text votes_text",
    "cli cli_reward cli_votes __main__",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
FILES = sorted((ROOT / "diffalign").rglob("*.py"))


def name_of(parts: tuple[str, ...]) -> str:
    """The name in LAYERS of a module of `diffalign`, by its path's parts: all methods of a kind share one."""
    return parts[0] if parts[0] in LEVEL or len(parts) == 1 else parts[1]


def dotted(path: Path) -> set[tuple[str, ...]]:
    """What a file imports of `diffalign`, anywhere in it, as the parts after that name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {tuple(name.split(".")[1:]) for name in found if name.startswith("diffalign.")}


def imported(path: Path) -> set[str]:
    """The modules of `diffalign` that a file imports, by their names in LAYERS."""
    return {name_of(parts) for parts in dotted(path)} & LEVEL.keys()


def module(path: Path) -> str:
    return name_of(path.relative_to(ROOT / "diffalign").with_suffix("").parts)


def test_every_module_has_a_layer():
    missing = {module(path) for path in FILES} - LEVEL.keys() - {"__init__"}
    assert not missing, f"say in LAYERS above where {missing} belong"


@pytest.mark.parametrize("path", [f for f in FILES if module(f) in LEVEL], ids=lambda p: p.name)
def test_lower_never_imports_upper(path):
    upper = {name for name in imported(path) if LEVEL[name] > LEVEL[module(path)]}
    assert not upper, f"{path.name} imports {upper} from a layer above its own"


@pytest.mark.parametrize("path", sorted((ROOT / "rewards").glob("*.py")), ids=lambda p: p.name)
def test_rewards_import_only_the_protocol(path):
    assert imported(path) <= {"reward"}


def python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_importing_the_package_and_the_command_line_is_light(tmp_path):
    heavy = "{'torch', 'diffusers', 'transformers', 'pydantic', 'matplotlib', 'accelerate'}"
    done = python(
        f"import sys, diffalign, diffalign.commands.cli; print({heavy} & set(sys.modules))", tmp_path
    )
    assert done.stdout == "set()\n", done.stderr


def test_every_public_name_resolves():
    import diffalign

    assert all(getattr(diffalign, name) is not None for name in diffalign.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Polizy'"):
        _ = diffalign.Polizy


def test_the_folder_name_is_not_the_package_name():
    assert "is the package `diffalign_rewards`" in python("import rewards").stderr


def test_sub_packages_form_no_circle():
    uses: dict[str, set[str]] = {}
    for path in FILES:
        own = path.relative_to(ROOT / "diffalign").with_suffix("").parts[0]
        uses.setdefault(own, set()).update({parts[0] for parts in dotted(path)} - {own, "__version__"})
    graphlib.TopologicalSorter(uses).prepare()
