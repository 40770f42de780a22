"""What a ground energy may be asked of: a molecule, an Ising chain, a sum of Pauli words; checked before anything is computed."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from qedge.errors import InvalidHamiltonian, nearest
from qedge.job.part import Part

ELEMENTS = ("H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne")  # those with an STO-3G basis in PennyLane
NEAREST = 0.2  # ångström between two atoms; nuclei closer than this are a slip of the pen
PARTICLES = "IXYZ"


class Atom(Part):
    """An atom of a molecule."""

    element: str = Field(description=f"one of {', '.join(ELEMENTS)}")
    position: tuple[float, float, float] = Field(description="in ångström")


class Molecule(Part):
    """A closed-shell molecule in the STO-3G basis: one by name with its bond length, or one's own atoms.

    The active space is in spatial orbitals; what is below it stays doubly occupied.
    """

    kind: Literal["molecule"] = "molecule"
    name: str = Field(default="H2", description="H2, LiH, BeH2, or with `atoms` what you call it")
    bond_length: float | None = Field(default=None, description="in ångström; default: near the molecule's equilibrium")
    atoms: tuple[Atom, ...] | None = Field(default=None, description="instead of a bond length")
    charge: int = 0
    multiplicity: int = Field(default=1, description="2 S + 1; only closed shells, 1, are supported")
    active_electrons: int | None = Field(default=None, description="default: all; LiH 2, BeH2 4")
    active_orbitals: int | None = Field(default=None, description="spatial; default: all above those kept full")

    @property
    def length(self) -> float | None:
        """Its bond length in ångström, where it has one."""
        if self.atoms is not None:
            return None
        return KNOWN[self.name][1] if self.bond_length is None else self.bond_length

    @property
    def geometry(self) -> tuple[Atom, ...]:
        """Its atoms; one by name lies along z."""
        if self.atoms is not None:
            return self.atoms
        return tuple(Atom(element=one, position=(0.0, 0.0, place * (self.length or 0.0))) for place, one in enumerate(KNOWN[self.name][0]))

    @property
    def electrons(self) -> int:
        """All of its electrons."""
        return sum(ELEMENTS.index(atom.element) + 1 for atom in self.geometry) - self.charge

    @property
    def orbitals(self) -> int:
        """All of its spatial orbitals."""
        return sum(1 if atom.element in ("H", "He") else 5 for atom in self.geometry)

    @property
    def active_space(self) -> tuple[int, int]:
        """Active electrons and active spatial orbitals."""
        usual = KNOWN[self.name][2] if self.atoms is None else None
        electrons = self.active_electrons
        if electrons is None:
            electrons = self.electrons if usual is None or self.active_orbitals is not None else usual - self.charge
        above = self.orbitals - (self.electrons - electrons) // 2
        return electrons, above if self.active_orbitals is None else self.active_orbitals

    @model_validator(mode="after")
    def _supported(self) -> Self:
        self._check_geometry()
        electrons = self.electrons
        if self.multiplicity != 1 or electrons % 2:
            raise InvalidHamiltonian(
                f"{self.name} with charge {self.charge} and multiplicity {self.multiplicity} is an open shell ({electrons} electrons); "
                "accepted: an even number of electrons and multiplicity 1",
                given={"charge": self.charge, "multiplicity": self.multiplicity},
            )
        if electrons < 2 or electrons > 2 * self.orbitals:
            raise InvalidHamiltonian(
                f"{self.name} with charge {self.charge} has {electrons} electrons in {self.orbitals} orbitals; accepted: 2 or more",
                given=self.charge,
            )
        self._check_active_space()
        return self

    def _check_geometry(self) -> None:
        if self.atoms is None and self.name not in KNOWN:
            raise InvalidHamiltonian(
                f"no molecule is called '{self.name}'; {nearest(self.name, KNOWN)}; or give its atoms", given=self.name
            )
        if self.atoms is not None and self.bond_length is not None:
            raise InvalidHamiltonian("a bond length beside atoms; accepted: one or the other", given=self.bond_length)
        if self.bond_length is not None and self.bond_length < NEAREST:
            raise InvalidHamiltonian(
                f"a bond length of {self.bond_length:g} ångström; accepted: {NEAREST:g} and more",
                given=self.bond_length,
                accepted=f"≥ {NEAREST:g}",
            )
        for atom in self.atoms or ():
            if atom.element not in ELEMENTS:
                raise InvalidHamiltonian(f"no basis for element '{atom.element}'; accepted: {', '.join(ELEMENTS)}", given=atom.element)
        if len(self.geometry) == 0:
            raise InvalidHamiltonian("a molecule without atoms; accepted: one atom or more", given=0)
        for one, other in combinations(self.geometry, 2):
            if math.dist(one.position, other.position) < NEAREST:
                raise InvalidHamiltonian(
                    f"two atoms at {one.position} and {other.position} are closer than {NEAREST:g} ångström",
                    given=[one.position, other.position],
                )

    def _check_active_space(self) -> None:
        electrons, orbitals = self.active_space
        core = (self.electrons - electrons) // 2
        if electrons < 2 or electrons % 2 or electrons > self.electrons:
            raise InvalidHamiltonian(
                f"{electrons} active electrons of {self.electrons}; accepted: an even number from 2 to {self.electrons}", given=electrons
            )
        if not electrons // 2 <= orbitals <= self.orbitals - core:
            raise InvalidHamiltonian(
                f"{orbitals} active orbitals for {electrons} electrons; accepted: {electrons // 2} to {self.orbitals - core}",
                given=orbitals,
            )


# elements along the axis, bond length in ångström, active electrons when neutral (none: all)
KNOWN: dict[str, tuple[Sequence[str], float, int | None]] = {
    "H2": (("H", "H"), 0.74, None),
    "LiH": (("Li", "H"), 1.5712625, 2),
    "BeH2": (("H", "Be", "H"), 1.33, 4),
}


class Ising(Part):
    """The transverse-field Ising chain H = -coupling Σ Z_i Z_i+1 - field Σ X_i, of `sites` spins."""

    kind: Literal["ising"] = "ising"
    sites: int = Field(default=8, ge=2)
    field: float = 1.0
    coupling: float = 1.0
    periodic: bool = Field(default=False, description="the last spin is a neighbour of the first")

    @model_validator(mode="after")
    def _ring(self) -> Self:
        if self.periodic and self.sites < 3:
            raise InvalidHamiltonian(f"a ring of {self.sites} sites; accepted: 3 or more", given=self.sites)
        return self


class PauliTerms(Part):
    """One's own Hamiltonian, a real sum of Pauli words such as {"ZZI": -1, "IXI": 0.5}; the first letter is of wire 0."""

    kind: Literal["pauli"] = "pauli"
    terms: dict[str, complex]

    @model_validator(mode="after")
    def _hermitian(self) -> Self:
        if not self.terms:
            raise InvalidHamiltonian("a Hamiltonian without terms; accepted: one Pauli word or more", given={})
        wires = len(next(iter(self.terms)))
        for word, coefficient in self.terms.items():
            if not word or len(word) != wires or set(word) - set(PARTICLES):
                raise InvalidHamiltonian(f"'{word}' is no Pauli word on {wires} wires; accepted: letters I, X, Y, Z", given=word)
            if not cmath.isfinite(coefficient):
                raise InvalidHamiltonian(f"the coefficient of {word} is {coefficient}; accepted: finite numbers", given=str(coefficient))
            if coefficient.imag:
                raise InvalidHamiltonian(
                    f"not Hermitian: the coefficient of {word} is {coefficient}; accepted: real coefficients",
                    given=str(coefficient),
                    accepted="real",
                )
        return self


def _kind(problem: object) -> object:
    return problem.get("kind", "molecule") if isinstance(problem, Mapping) else getattr(problem, "kind", None)


Problem = Annotated[
    Annotated[Molecule, Tag("molecule")] | Annotated[Ising, Tag("ising")] | Annotated[PauliTerms, Tag("pauli")], Discriminator(_kind)
]
