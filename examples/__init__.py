"""Programs that show the whole path on real data."""
