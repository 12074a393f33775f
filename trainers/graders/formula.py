"""`calculate_output`: a formula over the scores of a multi grader's parts, read by hand and run as a list of steps.

Pure; no code of the formula's author is executed. Neither reading nor reckoning recurses with the length of the formula.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_DEPTH = 50
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(\*\*|[-+*/^(),]))", re.ASCII)
_OPERATORS: dict[str, Callable[..., float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": math.pow,
}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
"""`log` is the natural logarithm; min and max take any number of arguments, the others one."""


class FormulaError(ValueError):
    """The formula can't be read, or has no finite value for these scores; says why."""


@dataclass(frozen=True)
class _Apply:
    """Replace the last `count` numbers by what `function` makes of them."""

    function: Callable[..., float]
    count: int


Step = float | str | _Apply


@dataclass(frozen=True)
class Formula:
    """A formula that was read: numbers and names in the order in which operators take them (reverse Polish)."""

    steps: tuple[Step, ...]

    @property
    def names(self) -> set[str]:
        """The scores that the formula asks for."""
        return {step for step in self.steps if isinstance(step, str)}

    def value(self, scores: Mapping[str, float]) -> float:
        """The formula's value. Raises FormulaError when it is none: division by zero, a root of less than zero, an overflow."""
        stack: list[float] = []
        try:
            for step in self.steps:
                if isinstance(step, _Apply):
                    operands = stack[-step.count :]
                    del stack[-step.count :]
                    stack.append(float(step.function(*operands)))
                else:
                    stack.append(scores[step] if isinstance(step, str) else step)
        except (ArithmeticError, ValueError) as error:
            raise FormulaError(f"the formula has no value here ({error})") from None
        if not math.isfinite(stack[0]):
            raise FormulaError("the formula has no finite value here")
        return stack[0]


def parse_formula(text: str) -> Formula:
    """Read a formula. Raises FormulaError that says what was expected where."""
    reader = _Reader(_tokens(text))
    reader.sum()
    reader.expect("", "an operator")
    return Formula(tuple(reader.steps))


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            raise FormulaError(f"unexpected {text[at:].lstrip()[:1]!r}")
        found.append(match[0].strip())
        at = match.end()
    return found


class _Reader:
    """One pass over the tokens; a method for each level of precedence."""

    def __init__(self, tokens: list[str]) -> None:
        self.steps: list[Step] = []
        self._tokens, self._at, self._depth = tokens, 0, 0

    def sum(self) -> None:
        """product (+|- product)*"""
        self._chain(self._product, "+", "-")

    def expect(self, token: str, wanted: str) -> None:
        """Take `token`, which is "" for the end."""
        if self._next() != token:
            raise FormulaError(f"expected {wanted}, found {self._next()!r}" if self._next() else f"expected {wanted}, found the end")
        self._at += 1

    def _product(self) -> None:
        self._chain(self._signed, "*", "/")

    def _chain(self, operand: Callable[[], None], *operators: str) -> None:
        operand()
        while (operator := self._next()) in operators:
            self._at += 1
            operand()
            self._apply(_OPERATORS[operator], 2)

    def _signed(self) -> None:
        """(+|-)* power, where a sign takes the whole power: -2^2 is -4."""
        negative = False
        while (sign := self._next()) in ("+", "-"):
            self._at += 1
            negative ^= sign == "-"
        self._power()
        if negative:
            self._apply(lambda a: -a, 1)

    def _power(self) -> None:
        """operand (^ signed power)?, from the right: 2^3^2 is 2^9."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FormulaError(f"nested deeper than {MAX_DEPTH} levels")
        self._operand()
        if self._next() in ("^", "**"):
            self._at += 1
            self._signed()
            self._apply(_OPERATORS["^"], 2)
        self._depth -= 1

    def _operand(self) -> None:
        token = self._next()
        self._at += 1
        if token == "(":
            self.sum()
            self.expect(")", "')'")
        elif token in FUNCTIONS and self._next() == "(":
            self._call(token)
        elif token[:1].isdigit() or token[:1] == ".":
            self.steps.append(float(token))
        elif token[:1].isalpha() or token[:1] == "_":
            self.steps.append(token)
        else:
            raise FormulaError(f"expected a number or a grader's name, found {token!r}" if token else "the formula breaks off")

    def _call(self, name: str) -> None:
        count = 0
        while count == 0 or self._next() == ",":
            self._at += 1
            self.sum()
            count += 1
        self.expect(")", "',' or ')'")
        if count > 1 and name not in ("min", "max"):
            raise FormulaError(f"{name} takes one argument, not {count}")
        self._apply((lambda *values: FUNCTIONS[name](values)) if name in ("min", "max") else FUNCTIONS[name], count)

    def _apply(self, function: Callable[..., float], count: int) -> None:
        self.steps.append(_Apply(function, count))

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""
