"""How Sphinx builds the documentation (`make docs`)."""

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

import astra_gym  # noqa: E402

project = "ASTrA-Gym"
author = "the ASTrA-Gym contributors"
copyright = author
release = version = astra_gym.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
    "example_pages",
    "from_code",
    "mathml",
]
smartquotes = False  # two hyphens are a flag
LISTED = (DOCS / "api.rst").read_text(encoding="utf-8").split()
# an earlier build may have left pages of modules that are gone
GONE = [f"api/{page.name}" for page in (DOCS / "api").glob("*.rst") if page.stem not in LISTED]
exclude_patterns = ["_build", "gallery/*.ipynb", *GONE]
templates_path = ["_templates"]
default_role = "literal"  # docstrings mark code by single backticks
highlight_language = "none"  # commands; Python blocks say so
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # the signature has them
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autosummary_generate = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 80

sphinx_gallery_conf = {
    "examples_dirs": str(DOCS.parent / "examples"),
    "gallery_dirs": "gallery",
    "filename_pattern": "/",
    "reset_argv": "example_pages.arguments",
    "image_scrapers": ("example_pages.picture",),
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "show_signature": False,
    "abort_on_example_error": True,
}

html_theme = "furo"
html_title = f"ASTrA-Gym {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
