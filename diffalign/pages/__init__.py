"""Reports and galleries: one HTML file each."""
