"""REINFORCE with a leave-one-out baseline, as a user would add it: one file, nothing registered.

diffalign train emoji-ddpo algorithm=docs/examples/reinforce.py:Reinforce
"""

from dataclasses import dataclass

from diffalign.credit import leave_one_out


@dataclass
class Reinforce:
    """scale multiplies the advantage, in reward units."""

    min_images_per_prompt = 2  # one picture alone has no others to be compared with

    scale: float = 1.0

    def collect(self, run):
        batch = run.sample()
        batch.advantages = self.scale * leave_one_out(batch.total, batch.group)
        return batch

    def minibatches(self, run, batch):
        return run.split(batch)

    def losses(self, run, batch):
        count = len(batch) * len(batch.live)
        for rows, cols in run.transitions(batch):
            advantage = batch.advantages[rows].to(batch.states.device)
            yield -(advantage * run.log_prob(batch, rows, cols) / batch.dim).sum() / count
