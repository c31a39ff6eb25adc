"""Files: runs, searches, checkpoints, pictures."""
