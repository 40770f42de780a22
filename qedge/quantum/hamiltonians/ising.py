"""The transverse-field Ising chain as Pauli words."""

from __future__ import annotations

from qedge.quantum.hamiltonians.pauli import Hamiltonian, from_terms
from qedge.quantum.hamiltonians.problem import Ising


def ising_chain(chain: Ising) -> Hamiltonian:
    """H = -coupling Σ Z_i Z_i+1 - field Σ X_i.

    Raises:
        InvalidHamiltonian: coupling and field are both zero.
    """

    def word(letter: str, *sites: int) -> str:
        return "".join(letter if site in sites else "I" for site in range(chain.sites))

    bonds = chain.sites if chain.periodic else chain.sites - 1
    terms: dict[str, complex] = {word("Z", site, (site + 1) % chain.sites): -chain.coupling for site in range(bonds)}
    terms |= {word("X", site): -chain.field for site in range(chain.sites)}
    return from_terms(terms)
