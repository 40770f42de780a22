"""Networks for a node by search: accuracy against the latency that is measured and the size of the file."""
