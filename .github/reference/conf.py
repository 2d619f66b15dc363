"""The API reference, from the docstrings: ``python -m sphinx -W -n .github/reference build/reference``."""

import re

project = "pmsn_plugins"
html_theme = "alabaster"
html_theme_options = {"page_width": "1100px", "description": "Multi-compartment spiking neurons"}
extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_inherit_docstrings = False  # the frameworks' own are in their references
autodoc_typehints = "none"  # docstrings say shapes and dtypes too
# what is documented in other references
nitpick_ignore_regex = [("py:.*", r"(collections|torch|nn|numpy|snntorch|snn|spikingjelly|matplotlib)\..*")]
nitpick_ignore = [("py:class", "pmsn_plugins.datasets.source.Samples")]  # a protocol: any map-style data set


def shapes_are_code(app, what, name, obj, options, lines):
    """[T, N, C, *] in a docstring: the asterisk would begin emphasis."""
    lines[:] = [re.sub(r"(?<!`)(\[[^][`]*\*[^][`]*\])", r"``\1``", line) for line in lines]


def fields_are_in_the_docstring_of_their_class(app, what, name, obj, skip, options):
    return True if type(obj).__name__ == "_tuplegetter" or name == "to_sequence" else None


def setup(app):
    app.connect("autodoc-skip-member", fields_are_in_the_docstring_of_their_class)
    app.connect("autodoc-process-docstring", shapes_are_code)
