"""Small drawings for a page as inline SVG: how a reward rose, and a search tree.

Colours come from the page: `currentColor` and its --good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Node = Mapping[str, Any]
LEAVES = 200
"""At most so many leaves are drawn of a tree: the best."""


def sparkline(values: Sequence[float | None], width: int = 120, height: int = 28) -> str:
    """The best reward from sample to sample, as steps that rise to the right."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    across = (width - 4) / (len(known) - 1)
    places = [(2 + across * k, height - 3 - (height - 6) * (v - low) / span) for k, v in enumerate(known)]
    steps = "".join(f" H{x:.1f} V{y:.1f}" for x, y in places[1:])
    (x, y), (right, top) = places[0], places[-1]
    label = f"best reward, {low:.4g} to {low + span:.4g}"
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<path d="M{x:.1f} {y:.1f}{steps}"/><circle cx="{right:.1f}" cy="{top:.1f}" r="2.5"/></svg>'
    )


def tree(nodes: Sequence[Node]) -> str:
    """A tree of nodes with parent (-1: none), depth, value (None: unknown) and visits, the top above.

    The better a node, the more of the page's good colour; the more visits, the larger. The way to the
    best leaf is drawn thick.
    """
    kept = _kept(nodes)
    x, count = _across(nodes, kept)
    gap, drop = 16, 44
    place = {n: (12 + gap * x[n], 14 + drop * nodes[n]["depth"]) for n in kept}
    best = _way_to_best(nodes, kept)
    low, span = _range([nodes[n]["value"] for n in kept if n])
    lines = [_edge(place[nodes[n]["parent"]], place[n], n in best) for n in kept if n]
    dots = [_dot(place[n], nodes[n], low, span) for n in kept if n]
    width, height = 24 + gap * max(count - 1, 1), 28 + drop * max(nodes[n]["depth"] for n in kept)
    return (
        f'<svg class="tree" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="search tree of {len(nodes) - 1} nodes">{"".join(lines)}{"".join(dots)}</svg>'
    )


def _children(nodes: Sequence[Node], kept: set[int] | range) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {n: [] for n in kept}
    for n in kept:
        if n:
            found[nodes[n]["parent"]].append(n)
    return found


def _kept(nodes: Sequence[Node]) -> list[int]:
    """The best leaves and what is above them, in order."""
    below = _children(nodes, range(len(nodes)))
    leaves = sorted((n for n in below if not below[n]), key=lambda n: _value(nodes[n]), reverse=True)
    kept: set[int] = set()
    for leaf in leaves[:LEAVES]:
        while leaf >= 0 and leaf not in kept:
            kept.add(leaf)
            leaf = nodes[leaf]["parent"]
    return sorted(kept)


def _value(node: Node) -> float:
    return -math.inf if node["value"] is None else float(node["value"])


def _across(nodes: Sequence[Node], kept: Sequence[int]) -> tuple[dict[int, float], int]:
    """Where nodes stand from left to right, and how many leaves there are: leaves in a row, others above theirs."""
    below, x, leaves = _children(nodes, set(kept)), {}, 0
    order, waiting = [], [0]
    while waiting:
        order.append(node := waiting.pop())
        waiting += reversed(below[node])
    for node in order:
        if not below[node]:
            x[node], leaves = float(leaves), leaves + 1
    for node in reversed(order):
        if below[node]:
            x[node] = (x[below[node][0]] + x[below[node][-1]]) / 2
    return x, leaves


def _way_to_best(nodes: Sequence[Node], kept: Sequence[int]) -> set[int]:
    deepest = max(nodes[n]["depth"] for n in kept)
    node = max((n for n in kept if nodes[n]["depth"] == deepest), key=lambda n: _value(nodes[n]))
    way = set()
    while node >= 0:
        way.add(node)
        node = nodes[node]["parent"]
    return way


def _range(values: Sequence[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    return (min(known), (max(known) - min(known)) or 1.0) if known else (0.0, 1.0)


def _edge(top: tuple[float, float], bottom: tuple[float, float], thick: bool) -> str:
    (x, y), (u, v) = top, bottom
    middle = (y + v) / 2
    kind = ' class="way"' if thick else ""
    return f'<path{kind} d="M{x:.1f} {y} C{x:.1f} {middle} {u:.1f} {middle} {u:.1f} {v}"/>'


def _dot(place: tuple[float, float], node: Node, low: float, span: float) -> str:
    x, y = place
    share = 0.0 if node["value"] is None else (node["value"] - low) / span
    value = "no finite reward" if node["value"] is None else f"value {node['value']:.4g}"
    size = min(7.0, 2.5 + math.log2(max(1, node["visits"])))
    return (
        f'<circle cx="{x:.1f}" cy="{y}" r="{size:.1f}" style="--share: {100 * share:.0f}%">'
        f"<title>{value}, {node['visits']} visits</title></circle>"
    )
