"""Quantum neural networks: layers as plain torch modules, their private training, and studies of them."""
