"""The sample report as a page, made once."""

import pytest
from page_reading import Page, sampled

from se_deploy import report


@pytest.fixture(scope="session")
def full():
    return report.html(sampled())


@pytest.fixture(scope="session")
def page(full):
    return Page(full)
