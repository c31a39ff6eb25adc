"""From a config to a training or a search under way."""
