"""Hamiltonians: molecules, spin chains and one's own, as sums of Pauli words, and their exact ground energies."""
