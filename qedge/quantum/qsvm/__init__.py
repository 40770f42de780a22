"""Kernels of quantum states and the support vector machine on them."""
