"""Writes the package of a new sampler, complete and working, from the templates beside this module."""

from __future__ import annotations

import importlib.util
import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

from packaging.utils import InvalidName, canonicalize_name

from neurogen import __version__
from neurogen.errors import DataError, ParameterError
from neurogen.files import replacing, writing
from neurogen.registry.registry import SAMPLERS, Registry

__all__ = ["new_sampler"]

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
LONGEST = 60
ALWAYS = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "tests/test_sampler.py": "tests/test_{package}.py",
    "package/__init__.py": "{package}/__init__.py",
    "package/reference.py": "{package}/reference.py",
}
"""Template -> the file that is made of it."""

IN_TORCH = {"package/sampler.py": "{package}/sampler.py"}
WITH_KERNELS = {
    "package/sampler_with_kernels.py": "{package}/sampler.py",
    "package/cpu.py": "{package}/cpu.py",
    "package/cuda.py": "{package}/cuda.py",
}
KERNEL_ROWS = (
    "| `{package}/cpu.py` | the kernels of the CPU, compiled by Numba when they are first used, which takes a while |\n"
    "| `{package}/cuda.py` | those of CUDA |\n"
)


def new_sampler(name: str, out: Path, registry: Registry, *, with_kernels: bool = False) -> list[Path]:
    """Write the package `neurogen-NAME`.

    Args:
        name: of the sampler.
        out: the folder in which the package's own folder is made.
        registry: whose names are taken.
        with_kernels: made from `neurogen.kernels`, in place of torch.

    Returns:
        the files that were written.

    Raises:
        ParameterError: the name is not valid, or taken.
        DataError: the package's folder exists already, or cannot be written.
    """
    check_name(name, registry)
    package = f"neurogen_{name.replace('-', '_')}"
    folder = out / canonicalize_name(f"neurogen-{name}")
    values = _values(name, package, with_kernels)
    for place in (folder, out):
        if place.exists() and not (place is out and out.is_dir()):
            raise DataError(
                f"{place} exists already, and nothing is overwritten. Choose another name, or another folder with "
                "--out."
            )
    templates = ALWAYS | (WITH_KERNELS if with_kernels else IN_TORCH)
    files = {to.format(package=package): _filled(template, values) for template, to in templates.items()}
    files[f"{package}/py.typed"] = ""
    with writing(None, folder):
        out.mkdir(parents=True, exist_ok=True)
        with replacing(folder) as draft:
            for name, text in files.items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                (draft / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def check_name(name: str, registry: Registry) -> None:
    """Raise ParameterError unless a new sampler can be called so."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise ParameterError(
            f"A sampler's name is at most {LONGEST} small letters and digits, with single - or _ between them, and "
            f"begins with a letter, such as min-p; got {name!r}.",
            "name",
        )
    try:
        canonicalize_name(f"neurogen-{name}", validate=True)
    except InvalidName as error:
        raise ParameterError(f"neurogen-{name} cannot be the name of a distribution: {error}.", "name") from error
    taken = [plugin for plugin in registry.plugins(SAMPLERS) if _plain(plugin.name) == _plain(name)]
    if taken:
        raise ParameterError(
            f"The sampler {taken[0].name!r} is installed already, by {taken[0].origin}. Choose another name.", "name"
        )
    package = f"neurogen_{_plain(name)}"
    if importlib.util.find_spec(package) is not None:
        raise ParameterError(f"A module {package!r} is installed already. Choose another name.", "name")


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def _values(name: str, package: str, with_kernels: bool) -> dict[str, str]:
    cls = "".join(part.capitalize() for part in _plain(name).split("_"))
    major, minor = __version__.split(".")[:2]
    return {
        "name": name,
        "package": package,
        "distribution": canonicalize_name(f"neurogen-{name}"),
        "cls": f"{cls}Sampler" if keyword.iskeyword(cls) else cls,
        "neurogen_versions": f">={major}.{minor},<{major}.{int(minor) + 1}",
        "keep_row": "" if with_kernels else ", and what is kept, in torch",
        "kernel_rows": KERNEL_ROWS.format(package=package) if with_kernels else "",
    }


def _filled(template: str, values: dict[str, str]) -> str:
    text = (
        resources.files("neurogen.registry")
        .joinpath("templates", "sampler", *f"{template}.tmpl".split("/"))
        .read_text("utf-8")
    )
    return Template(text).substitute(values)
