"""A training from rounds to evaluation."""
