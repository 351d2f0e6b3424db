"""Finds arithmetic in a sampler's kernels that rounds differently from one device to another, and says what to use.

Two ways, since neither sees all: the functions that a kernel refers to, helpers of helpers too, whose lines are known;
and its code for CUDA before optimisation, where no call hides. Knows no sampler, and compiles nothing.

Functions of neurogen itself are not looked at: its tests do that.
"""

from __future__ import annotations

import dis
import linecache
import os
import re
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np

from neurogen.contract.functions import OWN, codes_of, functions_of, line_of, named_values
from neurogen.kernels.host import place_of

__all__ = ["Inexact", "inexact_calls", "inexact_code"]

EXACT_MATH = """
ceil comb copysign degrees fabs factorial floor fmod frexp gcd isfinite isinf isnan isqrt ldexp modf nextafter perm
radians remainder sqrt trunc ulp
"""
EXACT_UFUNCS = """
absolute add bitwise_and bitwise_count bitwise_or bitwise_xor ceil conjugate copysign deg2rad degrees divide divmod
equal fabs floor floor_divide fmax fmin fmod frexp gcd greater greater_equal invert isfinite isinf isnan lcm ldexp
left_shift less less_equal logical_and logical_not logical_or logical_xor maximum minimum modf multiply negative
nextafter not_equal positive rad2deg radians reciprocal remainder right_shift rint sign signbit spacing sqrt square
subtract trunc
"""
"""Functions whose result IEEE 754 defines to the last bit, or that are made of such; all others differ."""

INEXACT = (
    r"exp|exp2|exp10|expm1|log|log2|log10|log1p|pow|powi|sin|cos|tan|sincos|sinpi|cospi|sincospi|asin|acos|atan|atan2|"
    r"sinh|cosh|tanh|asinh|acosh|atanh|cbrt|rcbrt|rsqrt|hypot|rhypot|norm3d|norm4d|rnorm3d|rnorm4d|erf|erfc|erfinv|"
    r"erfcinv|erfcx|normcdf|normcdfinv|tgamma|lgamma|j0|j1|jn|y0|y1|yn|fdivide"
)
LIBDEVICE = re.compile(rf"(?:{INEXACT})f?|fast_\w+")
CALL = re.compile(rf'call [^\n]*@"?(?:__nv_(?P<nv>{LIBDEVICE.pattern})|llvm\.(?P<llvm>{INEXACT})\.[\w.]*)"?\(')
FAST = re.compile(r"= f(?:add|sub|mul|div|rem) (?:fast|reassoc|nnan|ninf|nsz|arcp|contract|afn)\b")
DEFINED = re.compile(r'^define [^\n]*@"?(?P<name>[^"(\s]+)"?\([^\n]*\n(?P<body>.*?)^\}', re.MULTILINE | re.DOTALL)

PRODUCT = re.compile(r"\s*(%\S+) = fmul (?:double|float) ")
STORED = re.compile(r"\s*store (?:double|float) (%[^,\s]+), (?:double|float)\* (%[^,\s]+)")
PASSED_ON = re.compile(r"\s*(%\S+) = (?:load (?:double|float), (?:double|float)\*|fpext \w+|fneg \w+) (%[^,\s]+)")
SUM = re.compile(r"\s*%\S+ = f(?:add|sub) (?:double|float) ([^,\s]+),\s+([^,\s]+)")

INSTEAD = {
    "exp": "numerics.two_to(x * 1.4426950408889634), for x <= 0",
    "exp2": "numerics.two_to(x), for x <= 0",
    "pow": "products, or numerics.two_to(numerics.exact_mul(y, numerics.log2_of(x))) for x < 1",
    "log": "numerics.log2_of(x) * 0.6931471805599453",
    "log2": "numerics.log2_of(x)",
    "hypot": "math.sqrt(numerics.exact_mul(x, x) + numerics.exact_mul(y, y))",
    "rsqrt": "1 / math.sqrt(x)",
    "a product that is added to something": "numerics.exact_mul(a, b) for the product, which is never fused",
    "fast arithmetic (fastmath)": "functions compiled without fastmath",
}
ALSO = {
    "power": "pow",
    "float_power": "pow",
    "powi": "pow",
    "**": "pow",
    "log10": "log",
    "exp10": "exp",
    "fast_exp": "exp",
}
ELSE = "+, -, /, math.sqrt, numerics.exact_mul, numerics.log2_of and numerics.two_to, which docs/kernels.md explains"


class Inexact(NamedTuple):
    """What differs from device to device.

    Attributes:
        what: an operation, as "math.exp".
        place: where it stands: "neurogen_mine/cuda.py, line 9: `...`", or the function that has it.
    """

    what: str
    place: str

    def __str__(self) -> str:
        plain = re.sub(r".*\.", "", self.what)
        plain = ALSO.get(plain, plain).removesuffix("f") if plain not in INSTEAD else plain
        return f"{self.what} in {self.place} gives other bits on CUDA than on a CPU. Use {INSTEAD.get(plain, ELSE)}."


# By the functions.


def inexact_calls(function: Callable[..., Any]) -> list[Inexact]:
    """What differs in the functions that a kernel is made of, in the order in which it is found."""
    found: list[Inexact] = []
    for one in functions_of(function):
        found += [inexact for inexact in _of_function(one) if inexact not in found]
    return found


def _of_function(function: FunctionType) -> Iterator[Inexact]:
    for line, value in named_values(function):
        name = _inexact_name(value)
        if name:
            yield Inexact(name, _shown(function.__code__.co_filename, line))
    for line in _powers(function.__code__):
        yield Inexact("**", _shown(function.__code__.co_filename, line))


def _powers(code: CodeType) -> Iterator[int]:
    """The lines with a power, even of a written integer: only the CPU makes products of that."""
    for one in codes_of(code):
        for step in dis.get_instructions(one):
            if step.opname == "BINARY_OP" and step.argrepr in ("**", "**="):
                yield line_of(step, one)


def _inexact_name(value: Any) -> str:
    """The name of a function that rounds differently from device to device; empty for all else."""
    name, module = getattr(value, "__name__", ""), getattr(value, "__module__", None) or ""
    if isinstance(value, np.ufunc):
        return "" if name in EXACT_UFUNCS.split() else f"np.{name}"
    if module in ("math", "cmath") and callable(value):
        return "" if module == "math" and name in EXACT_MATH.split() else f"{module}.{name}"
    if value is pow or (module in ("_operator", "operator") and name in ("pow", "ipow")):
        return "pow"
    if "libdevice" in module and LIBDEVICE.fullmatch(name):
        return f"libdevice.{name}"
    return ""


def _shown(file: str, line: int) -> str:
    here = os.path.relpath(file)
    code = linecache.getline(file, line).strip()
    return f"{file if here.startswith('..') else here}, line {line}{f': `{code}`' if code else ''}"


# By the code for CUDA.


def inexact_code(function: Callable[..., Any], llvm: str) -> list[Inexact]:
    """What differs in the code of a kernel for CUDA: calls, fast arithmetic, and products that are added to something.

    Args:
        function: of the kernel.
        llvm: before optimisation, as of `cuda_compile.llvm_of`: what a compiler makes of it may be fused.
    """
    bodies = {function["name"]: function["body"] for function in DEFINED.finditer(llvm)}
    known = {f"{one.__module__}.{one.__qualname__}": place_of(one) for one in functions_of(function)}
    found: list[Inexact] = []
    for name in _authors(bodies):
        body, place = bodies[name], known.get(_name_of(name), _name_of(name))
        what = [call["nv"] or call["llvm"] for call in CALL.finditer(body)]
        what += ["fast arithmetic (fastmath)"] if FAST.search(body) else []
        what += ["a product that is added to something"] if _adds_a_product(body) else []
        found += [Inexact(one, place) for one in what if Inexact(one, place) not in found]
    return found


def _authors(bodies: dict[str, str]) -> list[str]:
    """The functions of the author's, and those of Numba's that they call."""
    names = [name for name in bodies if not _name_of(name).startswith(OWN)]
    for name in names:  # which grows
        called = set(re.findall(r'@"?([\w.]+)"?\(', bodies[name])) & bodies.keys()
        names += [other for other in called if _name_of(other).startswith("numba.") and other not in names]
    return names


def _name_of(symbol: str) -> str:
    """The dotted name of a function by its name in machine code, `_ZN8neurogen7kernels...`."""
    parts, rest = [], symbol.partition("_ZN")[2]
    while match := re.match(r"\d+", rest):
        end = match.end() + int(match[0])
        parts.append(rest[match.end() : end].replace("_3clocals_3e", "<locals>"))
        rest = rest[end:]
    return ".".join(parts) or symbol


def _adds_a_product(body: str) -> bool:
    """Whether a float product reaches an addition, straight or by a variable: then a compiler may fuse both."""
    products: set[str] = set()
    for line in body.splitlines():
        if match := PRODUCT.match(line):
            products.add(match[1])
        elif match := STORED.match(line):
            (products.add if match[1] in products else products.discard)(match[2])
        elif match := PASSED_ON.match(line):
            products |= {match[1]} if match[2] in products else set()
        elif (match := SUM.match(line)) and products & {match[1], match[2]}:
            return True
    return False
