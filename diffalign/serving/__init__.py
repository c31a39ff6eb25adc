"""Rewards that live elsewhere: in another process, another environment, on another machine."""
