"""What `import neurogen`, `neurogen --help` and `neurogen samplers` may load: these lists and nothing else.

An import at the top of a module is seen here as soon as it makes one of them heavier. Add a name only if it is light.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
from cli_helpers import commands

LIGHT = frozenset(
    {"annotated_types", "click", "pluggy", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}
)
"""Packages of others that reading declarations and options takes."""

BASE = frozenset({"_lazy", "cli", "contract", "errors", "files", "kernels", "registry", "text"})
"""Neurogen's own folders and modules that every command takes."""

COMMANDS = BASE | {"bench", "data", "decoding", "models", "processors", "training"}
ANSI = re.compile(r"\x1b\[")
PROGRAM = """
import json, sys
before = set(sys.modules)
import neurogen
for arguments in {arguments!r}:
    from neurogen.cli import main
    try:
        main(arguments, prog_name="neurogen")
    except SystemExit as end:
        assert end.code == 0, arguments
print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)
"""


@dataclass(frozen=True)
class Start:
    """Command lines that are run one after the other in one process, and what they may load.

    Attributes:
        others: packages of others.
        own: neurogen's folders and modules.
        plugins: whether samplers' packages may be among them, of which the declarations are read.
    """

    arguments: list[list[str]]
    others: frozenset[str]
    own: frozenset[str]
    plugins: bool = False


WITH_A_SAMPLER = [["run", "--sampler", "topk", "-h"], ["conformance", "topk", "--help"]]
STARTS = {
    "import neurogen": Start([], frozenset(), frozenset({"_lazy", "contract"})),
    "neurogen --help": Start([["--help"]], LIGHT | {"filelock"}, COMMANDS),
    "neurogen samplers": Start(
        [["samplers"], ["plugins"]], LIGHT | {"rich"}, BASE | {"integrations", "processors"}, plugins=True
    ),
    "every --help": Start(
        [*([*path, "--help"] for path, _ in commands()), ["--version"], *WITH_A_SAMPLER],
        LIGHT | {"filelock"},
        COMMANDS | {"integrations"},
        plugins=True,
    ),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_only_what_is_listed_is_loaded(start: Start) -> None:
    program = PROGRAM.format(arguments=start.arguments)
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not ANSI.search(done.stdout), "colours in a pipe"
    loaded = [name.split(".") for name in json.loads(done.stderr)]
    packages = {name for name, *_ in loaded if name not in sys.stdlib_module_names and not name.startswith("_")}
    plugins = {name for name in packages if name.startswith("neurogen_")}
    assert packages - plugins - {"neurogen"} <= start.others
    assert {inner for name, *rest in loaded if name == "neurogen" for inner in rest[:1]} <= start.own
    assert start.plugins or not plugins


def test_what_programs_import_and_declare_first_loads_no_heavy_library() -> None:
    program = """
import sys
import neurogen, neurogen.models.known, neurogen.text.runner, neurogen.integrations.profiles
import neurogen.bench.check, neurogen.testing.pytest_plugin
registry = neurogen.Registry(disabled=())
ours = [plugin for plugin in registry.plugins() if plugin.distribution.startswith("neurogen-")]
assert {plugin.name for plugin in ours} >= {"greedy", "topk", "topp", "topk+topp"}, ours
for plugin in ours:
    registry.load_class(plugin.qualified_name)()
print([name for name in ("torch", "numba", "numpy", "transformers", "llvmlite", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
