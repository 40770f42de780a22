"""Error correction: how long an encoded bit lasts, against one that is not encoded."""
