"""The words of an OpenQASM 2 program, each with the line and column where it stands.

Source: A. Cross, L. Bishop, J. Smolin, J. Gambetta, "Open Quantum Assembly Language", arXiv:1707.03429 (2017), appendix A.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NoReturn

from qedge.errors import InvalidCircuit

Kind = Literal["number", "integer", "word", "text", "sign", "end"]

_WORDS = re.compile(
    r"""(?P<blank>[ \t\r\n\f]+ | //[^\n]*)
    | (?P<number>(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)? | [0-9]+[eE][-+]?[0-9]+)
    | (?P<integer>[0-9]+)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<text>"[^"\n]*")
    | (?P<sign>->|==|[-+*/^()\[\]{};,])""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    """A word of a program, and where it begins; lines and columns count from 1."""

    kind: Kind
    text: str
    line: int
    column: int

    def __str__(self) -> str:
        return "the end of the program" if self.kind == "end" else f"'{self.text}'"


def tokens(program: str) -> list[Token]:
    """The words of a program; after the last, its end.

    Raises:
        InvalidCircuit: a character that begins no word.
    """
    found: list[Token] = []
    at, line, begun = 0, 1, 0  # begun: where the line did
    while at < len(program):
        match = _WORDS.match(program, at)
        here = (line, at - begun + 1)
        if match is None or match.lastgroup is None:
            raise InvalidCircuit(f"line {here[0]}, column {here[1]}: {program[at]!r} has no meaning here", line=here[0], column=here[1])
        if match.lastgroup != "blank":
            found.append(Token(match.lastgroup, match[0], *here))  # type: ignore[arg-type]
        breaks = match[0].count("\n")
        if breaks:
            line, begun = line + breaks, at + match[0].rindex("\n") + 1
        at = match.end()
    return [*found, Token("end", "", line, at - begun + 1)]


def refuse(where: Token, reason: str) -> NoReturn:
    """Say what is wrong, and where.

    Raises:
        InvalidCircuit: always.
    """
    raise InvalidCircuit(f"line {where.line}, column {where.column}: {reason}", line=where.line, column=where.column)
