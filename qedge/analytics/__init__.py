"""Federated statistics: what is measured of each client, how the sum is noised, and what may be read off it."""
