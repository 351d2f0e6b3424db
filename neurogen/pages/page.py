"""HTML pages, light and dark, made from the templates beside this file; a page needs nothing from elsewhere.

A template is `templates/NAME.html` and may have its own NAME.css and NAME.js. Jinja2 escapes every text. This module
knows no subject: what a page shows is computed by the module that renders it.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from neurogen.diagnosis.verdict import percent
from neurogen.files import to_json

__all__ = ["document", "fragment", "probability_class"]

PROBABILITY_STEPS = (
    (0.5, "p0", "50 % or more"),
    (0.1, "p1", "10 to 50 %"),
    (0.01, "p2", "1 to 10 %"),
    (0.001, "p3", "0.1 to 1 %"),
    (0.0, "p4", "below 0.1 %"),
)
"""Least probability of a token, the class of its text, and a label; the less probable, the stronger the colour."""


def document(template: str, **values: Any) -> str:
    """A page as a whole HTML document.

    Args:
        template: its name.
        **values: what the template shows.
    """
    return _environment.get_template(template).render(layout="document.html", **values)


def fragment(template: str, **values: Any) -> str:
    """The same page for a notebook, where it must not style anything else; arguments as for `document`."""
    return _environment.get_template(template).render(layout="fragment.html", **values)


def probability_class(probability: float) -> str:
    """The class of a text with this probability."""
    return next(css for least, css, _ in PROBABILITY_STEPS if probability >= least)


def _source(name: str) -> Markup:
    """A style sheet or script, as it is."""
    return Markup(resources.files("neurogen.pages").joinpath("templates", name).read_text(encoding="utf-8"))


_environment = Environment(
    loader=PackageLoader("neurogen.pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters["percent"] = percent
_environment.globals |= {"probability_steps": PROBABILITY_STEPS, "source": _source}
_environment.policies |= {"json.dumps_function": to_json, "json.dumps_kwargs": {}}
