"""Local training of a chunk of clients: one mathematics, several ways to compute it."""
