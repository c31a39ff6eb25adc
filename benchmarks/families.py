"""Makes the table of docs/models.md: what diffalign finds out about each family of the test suite.

python benchmarks/families.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from diffalign.errors import DiffalignError
from diffalign.policy import LoraSpec, Policy

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.families import FAMILIES, TRAPS, Family  # noqa: E402

DOC = ROOT / "docs" / "models.md"
MARKS = ("<!-- table -->", "<!-- end of table -->")


def row(family: Family) -> str:
    """One line: the family, its kind, how `predict` works, and what is inferred."""
    try:
        policy = Policy(family.make(), steps=family.steps, call=family.call, lora=LoraSpec(rank=2))
        if policy.shell.pipe.components.get("text_encoder") is None or family.embeds:
            policy.encode(**family.inputs(2))
    except DiffalignError as error:
        return f"| {family.name} | | refused | {error} |"
    template = policy.capture.template
    kind = "flow" if policy.grid.flow else f"diffusion, {policy.grid.target}"
    how = "template" if template else "replay"
    found = "; ".join(template.describe()) if template else policy.capture.reason
    return f"| {family.name} | {kind} | {how} | {found} |"


def main() -> None:
    """Write the table between its marks."""
    lines = ["| family | kind | predict | what was inferred, or why not |", "|---|---|---|---|"]
    lines += [row(family) for family in [*FAMILIES.values(), *TRAPS.values()]]
    before, rest = DOC.read_text().split(MARKS[0])
    table = "\n".join(lines)
    DOC.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{rest.split(MARKS[1])[1]}")


if __name__ == "__main__":
    main()
