"""Results as people and CI systems read them: HTML pages, a Markdown summary, JUnit XML.

Everything works from the plain JSON objects of the contract, so that a report can be made from the files of
a run that happened on another machine. Plots, and with them matplotlib, are imported when a page is written.
"""

from __future__ import annotations

from se_deploy.report.pages import compare_html, html, inspect_html
from se_deploy.report.summary import markdown
from se_deploy.report.xunit import junit

__all__ = ["compare_html", "html", "inspect_html", "junit", "markdown"]
