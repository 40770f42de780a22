"""Federated training: kernels, algorithms, rounds."""
