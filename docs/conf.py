"""The site: Sphinx over the committed notebooks. Nothing is executed, nothing is fetched, no page is listed by hand.

Before Sphinx looks for sources, `site_pages` copies nbs/ into docs/_nb and `api_pages` writes docs/api; both are git-ignored.
The interface is English because the prose is; headings and glossary are bilingual, so the search index splits Chinese too.
"""
import sys
from configparser import ConfigParser
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))

from api_pages import write_api  # noqa: E402
from bilingual_search import SearchEnglishChinese  # noqa: E402
from site_pages import write_pages  # noqa: E402

_config = ConfigParser(delimiters=["="])
_config.read(DOCS.parent / "settings.ini", encoding="utf-8")
_settings = _config["DEFAULT"]

write_pages(DOCS.parent, DOCS, repository=f"{_settings['git_url']}/blob/{_settings['branch']}")
write_api(DOCS.parent / _settings["lib_path"], DOCS / "api")

project = _settings["title"]
author = _settings["author"]
copyright = _settings["copyright"]
release = version = _settings["version"]
language = "en"

extensions = ["myst_nb", "sphinx_copybutton", "sphinx-mathjax-offline", "sphinx.ext.githubpages"]
root_doc = "index"
exclude_patterns = ["_build", "jupyter_execute", "index.md", "**/.ipynb_checkpoints"]  # index.md is the template of the generated index.ipynb
add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
nb_ipywidgets_js = {}  # no widget manager: site_pages puts a sentence where controls would be
myst_enable_extensions = ["dollarmath", "amsmath", "attrs_inline", "colon_fence", "deflist"]
myst_dmath_double_inline = True  # $$...$$ inside a paragraph, as JupyterLab takes it
myst_heading_anchors = 3
myst_links_external_new_tab = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "sphinx_book_theme"
html_title = "paperlib"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_search_language = SearchEnglishChinese.lang
html_theme_options = {
    "repository_url": _settings["git_url"],
    "repository_branch": _settings["branch"],
    "use_repository_button": True,
    "use_download_button": False,
    "home_page_in_toc": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "navbar_persistent": [],  # the sidebar has the search field already
}


def _all_when_the_navigation_changed(app, env, added, changed, removed):
    """Write every page again when the front page changed: its toctrees are in each page's sidebar."""
    return list(env.found_docs) if root_doc in added | changed else []


def setup(app):
    app.connect("env-get-outdated", _all_when_the_navigation_changed)
    app.add_search_language(SearchEnglishChinese)
    app.extensions["sphinx-mathjax-offline"].parallel_read_safe = True  # it copies files at the end and reads no page, but does not say so
suppress_warnings = ["ref.python"]  # three papers each have a class Crops: a bare annotation may mean any of them
