"""Sums of clipped per-example gradients: one mathematics, several ways to compute it."""
