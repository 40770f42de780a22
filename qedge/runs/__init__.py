"""The life of a run: prepared, carried out, completed."""
