"""The app in which people compare pictures, rank them, search, align the emoji model and judge models.

Logic that needs no browser lies in plain classes; the files `tab_*.py` only lay out and wire.
"""
