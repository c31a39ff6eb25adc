"""What the author of a reward gets: a scaffold, checks, and what the reward costs."""
