"""YAML files and key=value arguments as checked objects."""
