"""Values made by official implementations; each make_*.py says which and how."""
