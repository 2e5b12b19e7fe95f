"""The pages in a real browser; skipped, and said why, where there is none."""

import chromium
import needs
import pytest
import sample
import sweep_sample

from se_deploy import report

pytestmark = [
    pytest.mark.skipif(
        chromium.BROWSER is None, reason="none of chromium, chromium-browser, google-chrome is on PATH"
    ),
    needs.PLOTS,
]

DESK, PHONE = 1200, 400
OVERFLOW = """
    [...document.querySelectorAll("body *")].filter((e) => {
        const box = e.getBoundingClientRect();
        return box.width && box.right > innerWidth + 1 && !e.closest(".scroll, .canvas, pre");
    }).map((e) => e.outerHTML.slice(0, 80))
"""
DRAWING = (
    '<svg class="graph" viewBox="0 0 300 900" width="300" height="900"><rect width="300" height="900"/></svg>'
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def shown(browser, tmp_path):
    def show(page, width):
        path = tmp_path / "page.html"
        path.write_text(page, encoding="utf-8")
        browser.console.clear()
        browser.open(path.as_uri(), width=width)
        return browser

    return show


def whole():
    return report.html(sample.typed(sample.report()), DRAWING)


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_the_report_fits_and_nothing_complains(shown, width):
    page = shown(whole(), width)
    assert page.ask("document.title") == "se-deploy: se_deploy:se_resnet20"
    assert page.ask("document.querySelectorAll('svg.plot').length") == 5
    assert page.ask("document.querySelectorAll('section').length") == 8
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask(OVERFLOW) == []
    assert page.console == []


def test_captions_are_read_whole_on_a_phone(shown):
    page = shown(whole(), PHONE)
    ends = page.ask("[...document.querySelectorAll('caption')].map(c => c.getBoundingClientRect().right)")
    assert ends
    assert max(ends) <= PHONE


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_two_runs_side_by_side_fit(shown, width):
    runs = [(name, sample.typed(sample.report())) for name in "ab"]
    page = shown(report.compare_html(runs), width)
    assert page.ask("document.querySelectorAll('svg').length") == 2
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask(OVERFLOW) == []
    assert page.console == []


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_a_sweep_fits_and_nothing_complains(shown, width):
    page = shown(report.sweep_html(sweep_sample.sweep()), width)
    assert page.ask("document.title") == "se-deploy: a sweep of 5 cells"
    assert page.ask("document.querySelectorAll('svg.plot').length") == 2
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask(OVERFLOW) == []
    assert page.console == []


def test_the_cells_of_a_sweep_are_searched_and_filtered(shown):
    page = shown(report.sweep_html(sweep_sample.sweep()), DESK)
    rows = "document.querySelectorAll('table.filtered tbody tr:not([hidden])').length"
    assert page.ask(rows) == 6

    def give(label, value):
        page.ask(f"""(() => {{
            const field = document.querySelector('[aria-label="{label}"]:is(input, select)');
            field.value = "{value}";
            field.dispatchEvent(new Event("input", {{ bubbles: true }}));
        }})()""")

    for label, value, left in (
        ("Search Cells", "ONE int8", 3),
        ("Target", "sm86", 2),
        ("State", "failed", 0),
    ):
        give(label, value)
        assert page.ask(rows) == left, label
        assert page.ask("document.querySelector('[role=status]').textContent") == f"{left} of 6"
    give("State", "")
    assert page.ask(rows) == 2


def test_a_table_sorts_by_what_its_cells_mean(shown):
    page = shown(whole(), DESK)
    table = "document.querySelector('[aria-label=\"Artifacts\"] table')"
    headings = page.ask(f"[...{table}.tHead.rows[0].cells].map(h => h.textContent)")
    column = headings.index("Size")
    sizes = f"[...{table}.tBodies[0].rows].map(r => r.cells[{column}].textContent)"
    before = page.ask(sizes)
    assert len(set(before)) > 2

    def in_bytes(words):
        number, unit = words.split()
        return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6}[unit]

    def measured(rows):
        return [in_bytes(words) for words in rows if words[0].isdigit()]

    heading = f"{table}.tHead.rows[0].cells[{column}]"
    for order, reverse in (("ascending", False), ("descending", True)):
        page.ask(f"{heading}.querySelector('button').click()")
        assert page.ask(f"{heading}.getAttribute('aria-sort')") == order
        now = page.ask(sizes)
        assert sorted(now) == sorted(before)
        assert measured(now) == sorted(measured(now), reverse=reverse)


def test_a_table_is_saved_as_csv(shown):
    page = shown(whole(), DESK)
    page.ask("""
        URL.createObjectURL = (blob) => { window.saved = blob.text(); return "#"; };
        HTMLAnchorElement.prototype.click = function () { window.savedAs = this.download; };
        document.querySelector('[aria-label="Artifacts"] + button.tool').click();
    """)
    text = page.ask("window.saved")
    assert page.ask("window.savedAs") == "artifacts.csv"
    first, *rows = text.strip().split("\r\n")
    assert first.startswith('"Artifact","Precision","Parity","Size"')
    assert len(rows) == page.ask("document.querySelectorAll('[aria-label=\"Artifacts\"] tbody tr').length")


def test_the_network_is_zoomed(shown):
    page = shown(whole(), DESK)
    page.ask("document.getElementById('network').open = true")
    width = "document.querySelector('.canvas svg').getBoundingClientRect().width"
    assert page.ask(width) == 300
    page.ask("document.querySelector('.tools button[title=Larger]').click()")
    assert page.ask(width) == pytest.approx(420, abs=1)
    page.ask("document.querySelector('.tools button[title=\"As wide as the page\"]').click()")
    assert page.ask(width) == page.ask("document.querySelector('.canvas').clientWidth")


def test_no_other_script_runs(shown):
    page = shown(whole().replace("</main>", "<script>document.title = 'taken'</script></main>"), DESK)
    assert page.ask("document.title") != "taken"
    assert page.console, "the policy says so"
