"""Demonstrations that ship with diffalign."""
