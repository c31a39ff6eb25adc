"""What a rollout leaves behind can be cut, saved and read again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from diffalign.errors import DiffalignError
from diffalign.grid import Grid
from diffalign.models.conditioning import Batch, Conditioning, rows_layout
from diffalign.steps import DDIM
from diffalign.trajectory import Trajectory


def make(n: int = 4) -> Trajectory:
    tree = {"prompt_embeds": torch.randn(n, 3, 2)}
    layout = rows_layout(tree, n)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    grid = Grid(torch.tensor([9, 5]), levels, (1 - levels**2).sqrt(), "epsilon")
    return Trajectory(
        prompts=[f"prompt {k} é" for k in range(n)], group=torch.tensor([0, 0, 1, 1]), seeds=list(range(n)),
        cond=Conditioning(Batch(layout, layout.flatten(tree), n)), states=torch.randn(n, 3, 4, 2),
        log_probs=torch.randn(n, 2), grid=grid, rule=DDIM(0.5), guidance_scale=3.0,
        rewards={"total": torch.randn(n)},
    )  # fmt: skip


def test_rows_take_everything_along():
    whole = make()
    part = whole[torch.tensor([3, 1])]
    assert part.prompts == ["prompt 3 é", "prompt 1 é"]
    assert part.seeds == [3, 1]
    assert len(part.cond) == 2
    torch.testing.assert_close(part.total, whole.total[[3, 1]])
    torch.testing.assert_close(part.final, whole.states[[3, 1], -1])


def test_a_saved_trajectory_is_the_same(tmp_path):
    one = make()
    one.save(tmp_path / "t.safetensors")
    two = Trajectory.load(tmp_path / "t.safetensors")
    assert two.prompts == one.prompts
    assert two.rule == one.rule
    assert two.guidance_scale == one.guidance_scale
    assert two.dim == 8
    for name in ("states", "log_probs", "group"):
        assert torch.equal(getattr(two, name), getattr(one, name))
    assert torch.equal(two.grid.signal, one.grid.signal)
    assert torch.equal(two.total, one.total)
    assert torch.equal(two.cond.state_dict()["0"], one.cond.state_dict()["0"])


def test_another_file_is_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(DiffalignError, match="not a trajectory"):
        Trajectory.load(tmp_path / "x.safetensors")


def test_joined_again_a_cut_batch_is_the_same():
    whole = make()
    joined = Trajectory.cat([whole[[n]] for n in range(4)])
    assert joined.prompts == whole.prompts
    assert joined.seeds == whole.seeds
    for name in ("states", "log_probs", "group", "total"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))
    assert torch.equal(joined.cond.state_dict()["0"], whole.cond.state_dict()["0"])


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("step rule", {"rule": DDIM(1.0)}),
        ("guidance scale", {"guidance_scale": None}),
        ("version", {"version": 3}),
        ("grid", {"grid": replace(make().grid, target="sample")}),
        ("latents", {"states": torch.zeros(4, 3, 4, 3)}),
        ("parts", {"rewards": {}}),
        ("parts", {"reference_log_probs": torch.zeros(4, 2)}),
    ],
)
def test_what_is_of_another_run_is_not_joined(what, other):
    with pytest.raises(DiffalignError, match=f"of different runs: their {what} is"):
        Trajectory.cat([make(), replace(make(), **other)])
