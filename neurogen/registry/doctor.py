"""Problems of the plugins of an environment, each with its remedy, and where each plugin was loaded from.

It loads every plugin and reads the metadata of their distributions. On request it checks samplers against their
contract, each in a process of its own, so that a sampler that hangs or ends its process harms nothing. It prints
nothing.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from neurogen.registry.plugin import DISABLE_VARIABLE, PROCESSORS, SAMPLERS, Plugin
from neurogen.registry.registry import Registry

__all__ = ["UNFINISHED", "Examined", "Problem", "check_conformance", "examine", "to_check"]

CONFORMANCE_SECONDS = 300
UNFINISHED = "not finished"
"""What is said of the conformance of a sampler whose checks were stopped, or have not begun."""

CAUSE = re.compile(r"cannot be used: (?P<cause>.*?)\. Update or uninstall", re.DOTALL)
MISSING = re.compile(r"needs the module '(?P<module>[^']+)'(?:, which is not installed \(`(?P<command>[^`]+)`\))?")


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do."""

    what: str
    remedy: str


@dataclass
class Examined:
    """One plugin.

    Attributes:
        name, kind, distribution, version, status, load_seconds: see `neurogen.registry.plugin.Plugin`.
        api_version: of the contract that it was written for; None where it could not be loaded.
        file: of its module; None where that is not known.
        disabled: what left it out; empty where nothing did.
        conformance: what the quick checks found, in a line; empty where they were not run.
        problems: what is wrong.
    """

    name: str
    kind: str
    distribution: str
    version: str
    status: str
    load_seconds: float | None
    api_version: int | None
    file: str | None
    disabled: str = ""
    conformance: str = ""
    problems: list[Problem] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(registry: Registry, *, conformance: bool = True) -> list[Examined]:
    """Load every plugin and say what is wrong with it: what is installed, what can be imported, what is declared.

    Args:
        registry: where they are.
        conformance: also run the quick conformance checks of every sampler that can be loaded, which takes minutes;
            see `check_conformance`, which tells how far it is.
    """
    pairs = [(plugin, _examined(plugin)) for kind in (SAMPLERS, PROCESSORS) for plugin in registry.load_all(kind)]
    for plugin, found in pairs:
        others = [other for other, _ in pairs if other.kind is plugin.kind]
        found.problems += [*_load_problems(plugin), *_declared_problems(plugin), *_clashes(plugin, others)]
        if plugin.status != "disabled":
            found.problems += [*_requirement_problems(plugin), *_place_problems(plugin, found.file)]
    examined = [found for _, found in pairs]
    if conformance:
        for _ in check_conformance(examined):
            pass
    return examined


def to_check(examined: Iterable[Examined]) -> list[Examined]:
    """Those that have conformance checks: the samplers that can be loaded."""
    return [found for found in examined if found.kind == SAMPLERS.name and found.status == "loaded"]


def check_conformance(examined: Iterable[Examined]) -> Generator[Examined]:
    """Run the quick conformance checks of every sampler that can be loaded, some at a time, each in its own process.

    Args:
        examined: what `examine` has found; what is found now is added to them.

    Yields:
        each sampler when its checks have ended. Where the caller stops before the end, the checks that still run are
        ended, and those samplers are left with `UNFINISHED` for their conformance.
    """
    samplers = to_check(examined)
    for found in samplers:
        found.conformance = UNFINISHED
    running = _Running()
    pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 2))
    try:
        jobs = {pool.submit(_conformance_of, found, running): found for found in samplers}
        for job in as_completed(jobs):
            jobs[job].conformance, problems = job.result()
            jobs[job].problems += problems
            yield jobs[job]
    finally:
        running.end()
        pool.shutdown(cancel_futures=True)


def _examined(plugin: Plugin) -> Examined:
    cls = plugin.plugin_class
    return Examined(
        name=plugin.name,
        kind=plugin.kind.name,
        distribution=plugin.distribution,
        version=plugin.version,
        status=plugin.status,
        load_seconds=plugin.load_seconds,
        api_version=getattr(cls, "api_version", None),
        file=getattr(sys.modules.get(plugin.value.partition(":")[0]), "__file__", None),
        disabled=plugin.error or "" if plugin.status == "disabled" else "",
    )


def _load_problems(plugin: Plugin) -> Iterator[Problem]:
    if plugin.status != "failed":
        return
    found = CAUSE.search(plugin.error or "")
    cause = found["cause"] if found else str(plugin.error)
    missing = MISSING.search(cause)
    if missing and missing["command"]:
        remedy = missing["command"]
    elif missing:
        remedy = f"pip install the distribution of the module {missing['module']!r}, or reinstall {plugin.distribution}"
    elif "api_version" in cause:
        remedy = f"pip install --upgrade {plugin.distribution} neurogen"
    elif "does not exist" in cause:
        remedy = f"pip install --force-reinstall {plugin.distribution}"
    else:
        remedy = f"update {plugin.distribution} or report it to its author, or leave it out with {_excluding(plugin)}"
    yield Problem(cause, remedy)


def _declared_problems(plugin: Plugin) -> Iterator[Problem]:
    """Modules that a sampler declares and that are not there. They are looked for and not imported, which is slow."""
    cls = plugin.plugin_class
    modules = {**getattr(cls, "backends", {}), "its reference": getattr(cls, "reference", "")}
    for what, module in modules.items():
        if module and not _exists(module):
            yield Problem(
                f"it declares the module {module!r} for {what}, which does not exist",
                f"pip install --force-reinstall {plugin.distribution}, or report it to its author",
            )


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return module in sys.modules


def _excluding(plugin: Plugin) -> str:
    return f"{DISABLE_VARIABLE}={plugin.qualified_name}"


def _clashes(plugin: Plugin, others: Iterable[Plugin]) -> Iterator[Problem]:
    """Others that are offered under the same name."""
    rivals = [
        other
        for other in others
        if other is not plugin and other.name == plugin.name and "disabled" not in (other.status, plugin.status)
    ]
    if rivals:
        origins = " and ".join(other.origin for other in rivals)
        yield Problem(
            f"{origins} offers a {plugin.kind.name} of the same name",
            f"ask for {plugin.qualified_name!r}, uninstall one, or leave one out with {_excluding(rivals[0])}",
        )


# The distribution.


def _distribution(plugin: Plugin) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(plugin.distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def _requirement_problems(plugin: Plugin) -> Iterator[Problem]:
    """Requirements in the metadata that are not installed, or in another version."""
    distribution = _distribution(plugin)
    for text in (distribution.requires or []) if distribution is not None else []:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            yield Problem(f"its requirement {text!r} cannot be read", f"update {plugin.distribution}")
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Problem(f"it requires {requirement.name}, which is not installed", f'pip install "{requirement}"')
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            what = f"it requires {requirement.name}{requirement.specifier}, and {installed} is installed"
            yield Problem(what, f'pip install "{requirement}", or a release of {plugin.distribution} that fits')


def _place_problems(plugin: Plugin, file: str | None) -> Iterator[Problem]:
    """Whether the module belongs to the distribution that names it, and whether that is installed only once."""
    distribution = _distribution(plugin)
    if distribution is None:
        return
    places = _places_of(plugin.distribution)
    if len(places) > 1:
        yield Problem(
            f"{plugin.distribution} is installed {len(places)} times: in {' and in '.join(map(str, places))}",
            f"pip uninstall {plugin.distribution} until none is left, and install it again",
        )
    folders = _folders_of(distribution)
    if file is not None and folders and not any(Path(file).resolve().is_relative_to(folder) for folder in folders):
        yield Problem(
            f"its module {plugin.value} was loaded from {file}, which is not where {plugin.distribution} was installed",
            f"rename or remove what stands in its way there, or start Python elsewhere (sys.path begins with "
            f"{sys.path[0] or 'the current folder'})",
        )


def _places_of(name: str) -> list[Path]:
    """The folders in which a distribution of this name is installed: those of installers, not of source trees."""
    found = {
        Path(str(distribution.locate_file(""))).resolve()
        for distribution in importlib.metadata.distributions(name=name)
        if distribution.read_text("INSTALLER") is not None
        and canonicalize_name(distribution.metadata["Name"] or "") == canonicalize_name(name)
    }
    return sorted(found)


def _folders_of(distribution: importlib.metadata.Distribution) -> list[Path]:
    """Where the modules of a distribution may be: where it was installed, and the source of an editable one."""
    folders = [Path(str(distribution.locate_file(""))).resolve()]
    direct = json.loads(distribution.read_text("direct_url.json") or "{}")
    if direct.get("dir_info", {}).get("editable"):
        folders.append(Path(unquote(urlsplit(direct["url"]).path)).resolve())
    return folders


# The contract.


class _Running:
    """The running processes. A terminal's Ctrl-C does not reach them, so that none reports it as its failure."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[str]] = set()
        self._ended = False

    def run(self, command: Sequence[str], seconds: float) -> tuple[int, str, str] | None:
        """Exit code, stdout and stderr of a command; None where it took longer.

        Raises:
            RuntimeError: no more processes are to be started.
        """
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with self._lock:
            if self._ended:
                raise RuntimeError("ended")
            process = subprocess.Popen(
                command, env=paths, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            self._processes.add(process)
        try:
            said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.communicate()
            return None
        finally:
            self._processes.discard(process)
        return process.returncode, *said

    def end(self) -> None:
        """End all of them, and refuse to start others."""
        with self._lock:
            self._ended = True
            for process in list(self._processes):
                _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and what it has started."""
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _conformance_of(found: Examined, running: _Running) -> tuple[str, list[Problem]]:
    """What the quick checks found, in a line, and what is wrong."""
    name = f"{found.distribution}:{found.name}"
    if not _is_installed(found.distribution):
        return "not run: it is not installed, but registered in this process", []
    done = running.run(
        [sys.executable, "-m", "neurogen", "conformance", name, "--quick", "--json"], CONFORMANCE_SECONDS
    )
    if done is None:
        what = f"its quick conformance checks did not end within {CONFORMANCE_SECONDS} seconds"
        return "did not end", [_breach(found, what)]
    code, printed, said = done
    try:
        results = json.loads(printed)["results"]
    except json.JSONDecodeError:
        last = said.strip().splitlines()[-1:] or ["no word"]
        what = f"its conformance checks ended with exit code {code}: {last[0]}"
        return f"exit code {code}", [_breach(found, what)]
    failed = [result["check"] for result in results if result["status"] == "failed"]
    passed = sum(result["status"] == "passed" for result in results)
    if not failed:
        return f"{passed} passed", []
    what = f"it does not keep its contract: {', '.join(failed)}"
    return f"{len(failed)} of {passed + len(failed)} failed", [_breach(found, what)]


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
    return True


def _breach(found: Examined, what: str) -> Problem:
    show = f"see `neurogen conformance {found.distribution}:{found.name}`"
    return Problem(what, f"{show}, and update {found.distribution} or report it to its author")
