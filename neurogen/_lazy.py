"""Public names that are imported when they are first used, and modules under the names they had in version 0.1."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "batch": "decoding.batch",
    "bench.flashinfer": "bench.peers",
    "chain": "contract.chain",
    "charts": "pages.training_charts",
    "checkpoint": "training.checkpoint",
    "compare": "diagnosis.compare",
    "compare_page": "pages.compare",
    "configuration": "cli.configuration",
    "continuous": "decoding.engine",
    "conversation": "text.conversation",
    "declarations": "contract.declarations",
    "diagnose": "diagnosis.diagnose",
    "diagnosis_causes": "diagnosis.causes",
    "diagnosis_charts": "pages.diagnosis_charts",
    "diagnosis_input": "diagnosis.input",
    "diagnosis_measures": "diagnosis.measures",
    "diagnosis_page": "pages.diagnosis",
    "diagnosis_verdict": "diagnosis.verdict",
    "diagnosis_weights": "diagnosis.weights",
    "distributions": "registry.distributions",
    "doctor": "registry.doctor",
    "document_mask": "training.document_mask",
    "documents": "data.documents",
    "encoding": "data.encoding",
    "engine": "decoding.engine",
    "engines.llama_context": "integrations.llama_context",
    "engines.llamacpp": "integrations.llamacpp",
    "engines.vllm": "integrations.vllm",
    "explain": "diagnosis.explain",
    "explain_page": "pages.explain",
    "explanation": "diagnosis.explain",
    "foreign": "models.foreign",
    "generation": "text.generation",
    "health": "diagnosis.health",
    "hints": "text.hints",
    "hookspecs": "contract.hookspecs",
    "known_models": "models.known",
    "kvcache": "models.kvcache",
    "kernels.cuda_extra": "contract.cuda_extra",
    "mistakes": "contract.mistakes",
    "near_misses": "text.near_misses",
    "notebook": "pages.notebook",
    "optimizers": "training.optimizers",
    "order": "decoding.order",
    "parameters": "contract.parameters",
    "plugin": "registry.plugin",
    "prefix_engine": "decoding.prefix_engine",
    "presets": "training.presets",
    "printable": "text.printable",
    "probabilities": "models.probabilities",
    "processes": "training.processes",
    "processor": "contract.processor",
    "profiles": "integrations.profiles",
    "prompts": "text.prompts",
    "pytest_plugin": "testing.pytest_plugin",
    "randomness": "training.randomness",
    "ranks": "cli.ranks",
    "recording": "diagnosis.recording",
    "replay": "diagnosis.replay",
    "request": "decoding.request",
    "results": "cli.results",
    "rows": "data.rows",
    "runner": "text.runner",
    "sampler": "contract.sampler",
    "scaffold": "registry.scaffold",
    "scores": "text.best_of",
    "selection": "decoding.batch",
    "sources": "data.sources",
    "spec": "contract.spec",
    "special_tokens": "models.special_tokens",
    "stages": "contract.stages",
    "stops": "text.stops",
    "strategies.beam": "decoding.beam",
    "strategies.beam_settings": "decoding.beam_settings",
    "strategies.best_of": "text.best_of",
    "strategies.feed": "decoding.forward",
    "strategies.rejection": "decoding.rejection",
    "strategies.speculative": "decoding.speculative",
    "strategies.speculative_batch": "decoding.speculative",
    "stream_decoder": "text.stream_decoder",
    "text_metrics": "diagnosis.text_metrics",
    "tokenizer": "models.tokenizer",
    "tokenizer_training": "data.tokenizer_training",
    "trainer": "training.trainer",
    "training_data": "training.data",
    "training_files": "training.run_folder",
    "training_options": "training.options",
    "training_report": "training.report",
    "training_resume": "training.resume",
    "training_setup": "training.run",
    "weights": "models.weights",
}
"""Where a module of version 0.1 is now. These names go with version 0.3."""

RENAMED = {
    "continuous": {"ContinuousEngine": "decoding.engine.Engine", "RunningBatch": "decoding.batch.Batch"},
    "engine": {"FinishReason": "decoding.request.EndReason"},
    "request": {
        "Drawn": "decoding.request.SampledToken",
        "FinishReason": "decoding.request.EndReason",
        "Row": "decoding.request.RequestState",
    },
    "scores": {"sequence_score": "decoding.scores.sequence_score"},
}
"""Names in those modules that have another name or place today; they are found where the old module is imported."""

PACKAGES = frozenset(old.partition(".")[0] for old in MOVED if "." in old)
"""The packages in which some of them were; one that is no more is found empty."""


def names_of(package: str, *modules: str) -> Callable[[str], Any]:
    """The function `__getattr__` of a package whose public names are those of some of its modules, in this order.

    Args:
        package: the package's `__name__`.
        modules: its modules, relative to it; each lists its public names in `__all__`.
    """

    def attribute(name: str) -> Any:
        if not name.startswith("_"):
            for module in (importlib.import_module(f"{package}.{module}") for module in modules):
                if name in module.__all__:
                    value = getattr(module, name)
                    setattr(sys.modules[package], name, value)
                    return value
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute


class MovedModules(MetaPathFinder, Loader):
    """Finds modules under the names they had in version 0.1, with a DeprecationWarning that says what to write."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `MetaPathFinder.find_spec`."""
        package, _, old = name.partition(".")
        if package != "neurogen" or old not in MOVED.keys() | PACKAGES:
            return None
        return ModuleSpec(name, self, is_package=old not in MOVED)

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the empty one that the import system has made."""
        old = module.__name__
        place = MOVED.get(old.removeprefix("neurogen."))
        if place is None:  # a package
            return
        new = f"neurogen.{place}"
        renamed = RENAMED.get(old.removeprefix("neurogen."), {})
        told = "".join(f" Its {name} is now neurogen.{today}." for name, today in renamed.items())
        warnings.warn(
            f"{old} is now {new}.{told} The old name goes with version 0.3.", DeprecationWarning, stacklevel=2
        )
        sys.modules[old] = importlib.import_module(new)
        for name, today in renamed.items():
            where, _, which = today.rpartition(".")
            setattr(sys.modules[old], name, getattr(importlib.import_module(f"neurogen.{where}"), which))
