"""Expressions in parameters of OpenQASM 2: numbers, pi, names, + - * / ^, and sin cos tan exp ln sqrt.

Source: A. Cross, L. Bishop, J. Smolin, J. Gambetta, "Open Quantum Assembly Language", arXiv:1707.03429 (2017), appendix A, `exp`; the order
of operations is the usual one, `^` goes from the right and before a minus sign on its left.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qedge.quantum.qasm_tokens import Token, refuse

_FUNCTIONS: dict[str, Callable[[float], float]] = {
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
    "exp": math.exp,
    "ln": math.log,
    "sqrt": math.sqrt,
}
_SIGNS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": math.pow,
}
_SUMS, _PRODUCTS = ("+", "-"), ("*", "/")
_DEEPEST = 50  # parentheses, signs and powers in each other
_LONGEST = 200  # words


@dataclass(frozen=True)
class Expression:
    """What a parameter comes to, given those of the definition it stands in: a number, a place among those, or parts and what to do."""

    where: Token
    number: float = 0.0
    place: int | None = None
    parts: tuple[Expression, ...] = ()
    does: Callable[..., float] | None = None

    def value(self, given: Sequence[float]) -> float:
        """The number.

        Raises:
            InvalidCircuit: it is none: a division by zero, a logarithm or root of what has none, or something too large.
        """
        if self.place is not None:
            return given[self.place]
        if self.does is None:
            return self.number
        values = [part.value(given) for part in self.parts]
        try:
            found = self.does(*values)
        except (ArithmeticError, ValueError):
            found = math.nan
        if not math.isfinite(found):
            refuse(self.where, f"{self.where} of {' and '.join(f'{value:g}' for value in values)} is no finite number")
        return found


def expression(words: Sequence[Token], at: int, parameters: Mapping[str, int]) -> tuple[Expression, int]:
    """The expression that begins at a word, and where it ends. parameters: names that are known, and their places.

    Raises:
        InvalidCircuit: there is none.
    """
    reader = _Reader(words, at, parameters)
    return reader.sum(0), reader.at


class _Reader:
    def __init__(self, words: Sequence[Token], at: int, parameters: Mapping[str, int]) -> None:
        self.words, self.at, self.parameters = words, at, parameters
        self.begun = at

    def _takes(self, signs: Sequence[str]) -> Token | None:
        word = self.words[self.at]
        if word.kind != "sign" or word.text not in signs:
            return None
        self.at += 1
        return word

    def sum(self, depth: int) -> Expression:
        """Terms, added from the left."""
        left = self._product(depth)
        while (sign := self._takes(_SUMS)) is not None:
            left = Expression(sign, parts=(left, self._product(depth)), does=_SIGNS[sign.text])
        return left

    def _product(self, depth: int) -> Expression:
        left = self._signed(depth)
        while (sign := self._takes(_PRODUCTS)) is not None:
            left = Expression(sign, parts=(left, self._signed(depth)), does=_SIGNS[sign.text])
        return left

    def _signed(self, depth: int) -> Expression:
        if self.at - self.begun > _LONGEST:
            refuse(self.words[self.at], f"an expression of more than {_LONGEST} words")
        if depth > _DEEPEST:
            refuse(self.words[self.at], f"an expression more than {_DEEPEST} deep")
        if (sign := self._takes(_SUMS)) is not None:
            inner = self._signed(depth + 1)
            return inner if sign.text == "+" else Expression(sign, parts=(inner,), does=operator.neg)
        base = self._single(depth)
        if (sign := self._takes(("^",))) is not None:
            return Expression(sign, parts=(base, self._signed(depth + 1)), does=_SIGNS["^"])
        return base

    def _single(self, depth: int) -> Expression:
        word = self.words[self.at]
        self.at += word.kind != "end"
        if word.kind in ("number", "integer"):
            number = float(word.text)
            if not math.isfinite(number):
                refuse(word, f"{word} is too large")
            return Expression(word, number)
        if word.text == "(" or (word.kind == "word" and word.text in _FUNCTIONS):
            if word.text != "(":
                self._closed("(")
            inner = self.sum(depth + 1)
            self._closed(")")
            return inner if word.text == "(" else Expression(word, parts=(inner,), does=_FUNCTIONS[word.text])
        if word.kind == "word" and word.text in self.parameters:
            return Expression(word, place=self.parameters[word.text])
        if word.kind == "word" and word.text == "pi":
            return Expression(word, math.pi)
        known = ", ".join([*self.parameters, "pi", *_FUNCTIONS])
        refuse(word, f"expected a number or one of {known}, found {word}")

    def _closed(self, text: str) -> None:
        if self._takes((text,)) is None:
            refuse(self.words[self.at], f"expected '{text}', found {self.words[self.at]}")
