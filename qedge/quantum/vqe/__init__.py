"""Ground energies by variational circuits, beside exact diagonalisation."""
