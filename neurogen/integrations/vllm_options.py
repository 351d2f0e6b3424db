"""Options of vLLM by name: those of its own `EngineArgs`, read as its command line reads them.

vLLM is imported when a function is called.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from neurogen.errors import ParameterError

__all__ = ["check_names", "names_of_vllm", "typed_options", "with_memory_of_cpu"]

OURS = {"model": "--model", "dtype": "--dtype"}
WORDS = {"true": True, "false": False}
CPU_CACHE_BYTES = 4 * 2**30
MEMORY_OPTIONS = ("kv_cache_memory_bytes", "gpu_memory_utilization")
CPU_CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"


def check_names(names: Collection[str], known: Collection[str], engine: str) -> None:
    """Refuse options that an engine does not have.

    Raises:
        ParameterError: with the nearest name that it has.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ParameterError(f"{engine} has no option {name!r}.{hint}", name)


def names_of_vllm() -> list[str]:
    """The options of `EngineArgs`."""
    return [action.dest for action in _parser()._actions]


def typed_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Options as texts, with the values that vLLM's command line would give them.

    Args:
        options: name, as in Python or on vLLM's command line -> value; lists are separated by commas, a switch is true
            or false, a structure is JSON.

    Raises:
        ParameterError: there is no such option, it has no such value, or neurogen has an option of its own for it.
    """
    parser = _parser()
    actions = {action.dest: action for action in parser._actions}
    given = {name.lstrip("-").replace("-", "_"): value for name, value in options.items()}
    for name in given:
        if name in OURS:
            raise ParameterError(f"vLLM's option {name!r} is given by {OURS[name]} here.", name)
    check_names(given, actions, "vLLM")
    return {name: _typed(parser, actions[name], value) for name, value in given.items()}


def with_memory_of_cpu(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options; on a CPU with a size for the KV cache if none is given.

    vLLM would take 92 % of the memory, and stop where not all of that is free.
    """
    given = any(name in options for name in MEMORY_OPTIONS) or os.environ.get(CPU_CACHE_VARIABLE)
    if given or not importlib.import_module("vllm.platforms").current_platform.is_cpu():
        return dict(options)
    free = importlib.import_module("psutil").virtual_memory().available
    return {**options, MEMORY_OPTIONS[0]: min(CPU_CACHE_BYTES, free // 4)}


def _typed(parser: argparse.ArgumentParser, action: argparse.Action, value: str) -> Any:
    if action.nargs == 0:
        if value.lower() not in WORDS:
            raise ParameterError(f"vLLM's option {action.dest!r} is true or false, got {value!r}.", action.dest)
        return WORDS[value.lower()]
    flag = max(action.option_strings, key=len)
    several = action.nargs in ("+", "*")
    arguments = [flag, *value.split(",")] if several else [f"{flag}={value}"]
    return getattr(parser.parse_args(arguments), action.dest)


def _parser() -> argparse.ArgumentParser:
    """vLLM's parser of its options, which raises our errors."""
    base = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser

    class Parser(base):  # type: ignore[misc, valid-type]
        def error(self, message: str) -> NoReturn:
            raise ParameterError(f"vLLM refuses an option: {message}.")

    engine_args = importlib.import_module("vllm.engine.arg_utils").EngineArgs
    parser: argparse.ArgumentParser = engine_args.add_cli_args(Parser(add_help=False))
    return parser
