"""The tool that a chat model calls: arithmetic and a few string methods, by a parser. Nothing is ever evaluated as Python."""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

MAX_EXPRESSION_CHARS = 1_000
MAX_RESULT_CHARS = 200
MAX_BITS = 3_000  # of an integer, some 900 digits
MAX_STRING_CHARS = 2_000
MAX_DEPTH = 50
DIGITS = 10  # significant, of a result that goes on; more where its whole part alone has as many
EXACT_DIGITS = 12  # a decimal that ends within these is shown whole

THOUSANDS = re.compile(r"(?<![\w.])\d{1,3}(?:,\d{3})+(?![\d,])")

Value = int | float | str | list[str]


class CalculatorError(ValueError):
    """What was given is not something the calculator can work out."""


def answer(expression: str) -> str:
    """What the tool says to an expression: its value, or `error: …`. Never raises."""
    try:
        return calculate(expression)
    except CalculatorError as error:
        return f"error: {error}"


def calculate(expression: str) -> str:
    """The value of an expression, as text.

    Numbers with + - * / // % **, with or without thousands' commas; strings in quotes with .count(x), .find(x), .upper(), .lower(),
    .replace(x, y), .split(), [i], [::-1], len(x) and +. Raises CalculatorError for anything else, and for what would be too large.
    """
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise CalculatorError("too long")
    text = expression.strip()
    if '"' not in text and "'" not in text:
        text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    try:
        with warnings.catch_warnings():  # of the parser, on what a model wrote
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise CalculatorError("not arithmetic") from None
    shown = _shown(_value(tree.body, 0))
    if len(shown) > MAX_RESULT_CHARS:
        raise CalculatorError("too large")
    return shown


def _shown(value: Value) -> str:
    if isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise CalculatorError("too large")
        if value.is_integer() and abs(value) < 1e15:
            return str(int(value))
        if (exact := f"{value:.{EXACT_DIGITS}g}") == f"{value:.15g}":
            return exact
        digits = min(17, max(DIGITS, len(str(int(abs(value)))) + 2))
        return f"{value:.{digits}g}"
    if isinstance(value, int) and value.bit_length() > MAX_RESULT_CHARS * 4:
        raise CalculatorError("too large")
    return str(value)


def _value(node: ast.expr, depth: int) -> Value:
    if depth > MAX_DEPTH:
        raise CalculatorError("too deep")
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() | str() as value):
            return _held(value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = _number(_value(operand, depth + 1))
            return -number if isinstance(sign, ast.USub) else number
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(op, _value(left, depth + 1), _value(right, depth + 1))
        case ast.Call(func=ast.Name(id="len"), args=[one], keywords=[]):
            measured = _value(one, depth + 1)
            if isinstance(measured, str | list):
                return len(measured)
        case ast.Call(func=ast.Attribute(value=of, attr=name), args=args, keywords=[]):
            return _method(_value(of, depth + 1), name, [_value(arg, depth + 1) for arg in args])
        case ast.Subscript(value=of, slice=index):
            return _item(_value(of, depth + 1), index, depth)
    raise CalculatorError("not arithmetic")


def _held(value: Any) -> Value:
    """The value, where it is no larger than the calculator handles."""
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise CalculatorError("too large")
    if isinstance(value, str) and len(value) > MAX_STRING_CHARS:
        raise CalculatorError("too large")
    kept: Value = value
    return kept


def _number(value: Value) -> int | float:
    if isinstance(value, str | list):
        raise CalculatorError("not arithmetic")
    return value


def _divide(a: int | float, b: int | float) -> int | float:
    """Whole where it comes out even, however large."""
    if isinstance(a, int) and isinstance(b, int) and a % b == 0:
        return a // b
    return a / b


def _power(a: int | float, b: int | float) -> int | float:
    if isinstance(a, int) and isinstance(b, int) and b >= 0:
        if a.bit_length() * b > MAX_BITS:
            raise CalculatorError("too large")
        whole: int = a**b
        return whole
    result = float(a) ** float(b)
    if isinstance(result, complex):
        raise CalculatorError("no real number")
    return result


OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def _binary(op: ast.operator, a: Value, b: Value) -> Value:
    if isinstance(a, str) and isinstance(b, str) and isinstance(op, ast.Add):
        return _held(a + b)
    x, y = _number(a), _number(b)
    if type(op) not in OPERATORS:
        raise CalculatorError("not arithmetic")
    try:
        return _held(OPERATORS[type(op)](x, y))
    except ZeroDivisionError:
        raise CalculatorError("division by zero") from None
    except OverflowError:
        raise CalculatorError("too large") from None


METHODS: Mapping[str, tuple[int, ...]] = {"count": (1,), "find": (1,), "upper": (0,), "lower": (0,), "replace": (2,), "split": (0, 1)}
"""The string methods, with how many arguments each takes."""


def _method(of: Value, name: str, args: list[Value]) -> Value:
    if not isinstance(of, str) or len(args) not in METHODS.get(name, ()) or not all(isinstance(arg, str) for arg in args):
        raise CalculatorError("not arithmetic")
    if name == "replace" and len(str(args[1])) * (len(of) + 1) > 20 * MAX_STRING_CHARS:
        raise CalculatorError("too large")
    try:
        return _held(getattr(of, name)(*args))
    except ValueError:  # an empty separator
        raise CalculatorError("not arithmetic") from None


def _item(of: Value, index: ast.expr, depth: int) -> Value:
    if not isinstance(of, str | list):
        raise CalculatorError("not arithmetic")

    def place(node: ast.expr | None) -> int | None:
        if node is None:
            return None
        value = _value(node, depth + 1)
        if not isinstance(value, int):
            raise CalculatorError("not arithmetic")
        return value

    try:
        if isinstance(index, ast.Slice):
            return of[place(index.lower) : place(index.upper) : place(index.step)]
        at = place(index)
        assert at is not None
        return of[at]
    except (IndexError, ValueError):
        raise CalculatorError("no such place") from None
