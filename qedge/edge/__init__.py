"""Models on small machines: a ladder of precisions that the node itself measures, under a hard budget of bytes."""
