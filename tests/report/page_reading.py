"""What the tests of pages share: a page as a reader of it, and the sample report as a typed object."""

from __future__ import annotations

from html.parser import HTMLParser

import sample
from markupsafe import Markup

from se_deploy.report import plots

PLOTS = {"latency", "errors", "ranges", "waterfall-0", "curve"}
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page's tags, ids and text; fails on markup that does not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.tags, self.text, self.references = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        self.references += [v for k, v in attrs if k in {"src", "href", "data", "action", "srcset", "poster"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def draw_nothing(monkeypatch):
    """Keep which plots there are, without drawing each of hundreds."""

    def stub(name, title, caption, *_, **__):
        return plots.Plot(name, title, caption, Markup(f'<svg aria-labelledby="{name}-title"></svg>'))  # noqa: S704

    monkeypatch.setattr(plots, "_plot", stub)


def plots_in(page):
    return {
        attrs["aria-labelledby"].split()[0].removesuffix("-title") for t, attrs in page.tags if t == "svg"
    }


def sampled():
    return sample.typed(sample.report())


EMPTY = {"schema": "se-deploy/run/1", "tool_version": "0.1.0", "warnings": [], "report": "", "artifacts": {}}


def empty():
    return sample.typed(EMPTY, "run")
