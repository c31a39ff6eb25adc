"""Several rewards as one: measured, combined, normalised, bounded."""
