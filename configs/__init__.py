"""Packaged configurations and prompt lists: flat YAML and one prompt a line."""
