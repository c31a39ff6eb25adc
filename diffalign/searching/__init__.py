"""What a search sees, and what it leaves."""
