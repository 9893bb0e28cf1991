"""How Sphinx builds these pages: ``make docs``."""

import django
from django.conf import settings

from wsgigate import __version__

# Parts of Django can be imported in a project only.
settings.configure(INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"])
django.setup()

project = "wsgigate"
author = "the wsgigate authors"
copyright = "the wsgigate authors"
version = release = __version__

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = [
    "_build",
    "reference.rst",
    "environ.rst",
    "safety_table.rst",
    "metrics_names.rst",
    "server_keys.rst",
]  # included
highlight_language = "none"

autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
autodoc_typehints = "none"

html_theme = "alabaster"
html_theme_options = {
    "description": "An API gateway as a stack of WSGI middlewares",
    "fixed_sidebar": True,
    "page_width": "1080px",
    "show_powered_by": False,
}
html_sidebars = {"**": ["about.html", "searchfield.html", "navigation.html"]}
html_show_sourcelink = False
