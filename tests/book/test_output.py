"""The chapters' helpers: alt text, tables, glue and the checks of exercises."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from pruning_book import output


def figure(alt: str | None = None) -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([0, 1])
    if alt is not None:
        drawn.alt = alt
    return drawn


def test_a_picture_carries_the_figures_own_words_or_others_and_is_refused_without() -> None:
    html = output.picture(figure('A line from 0 to 1, "rising" & straight.'))._repr_html_()
    assert html.startswith('<img src="data:image/png;base64,iVBOR')
    assert 'alt="A line from 0 to 1, &quot;rising&quot; &amp; straight."' in html
    assert output.picture(figure("old"), "new").alt == "new"
    for alt in (None, "  ", "x" * 251):
        with pytest.raises(ValueError, match="1 to 250"):
            output.picture(figure(alt))


def test_a_table_escapes_names_its_rows_and_sets_wide_ones_small() -> None:
    html = output.table(["a", "b<c"], [["x & y", 1], ["a name that takes more than one line", 2]], "Two rows").data
    assert "b&lt;c" in html and "x &amp; y" in html and ">Two rows</span></caption>" in html
    assert html.count('scope="row"') == 2 and html.count('scope="col"') == 2
    assert 'white-space:nowrap">x &amp; y' in html and 'min-width:10em">a name' in html
    with pytest.raises(ValueError, match="1 cells, the header has 2"):
        output.table(["a", "b"], [["x"]])
    cells = ["uniform", "1 (0 to 2)", "12.345 (11.987 to 12.765)", "a < b", "x"]
    wide, narrow = output.table(list("abcde"), [cells]).data, output.table(list("abcd"), [cells[:4]]).data
    assert "font-size:.85em" in wide and "font-size" not in narrow and "a &lt; b" in wide
    assert 'white-space:nowrap">12.345<br><small>(11.987 to 12.765)</small>' in wide and "<small>" not in narrow


def test_glue_leaves_what_myst_nb_leaves_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, theirs = [], []
    monkeypatch.setattr(output, "display", lambda data, raw, metadata: shown.append((data, metadata)))
    output.glue(speed="1.50", count=3)
    (first, meta), (second, _) = shown
    assert first == {"application/papermill.record/text/plain": "'1.50'"}
    assert meta["scrapbook"] == {"name": "speed", "mime_prefix": "application/papermill.record/"}
    assert second == {"application/papermill.record/text/plain": "3"}
    reference = pytest.importorskip("myst_nb.ext.glue")
    monkeypatch.setattr(reference, "ipy_display", lambda data, raw, metadata: theirs.append((data, metadata)))
    reference.glue("speed", "1.50", display=False)
    assert shown[:1] == theirs


def test_must_fail_passes_when_the_check_refuses() -> None:
    def check(answer: int) -> None:
        assert answer == 4

    output.must_fail(check, 5)
    with pytest.raises(AssertionError, match="known to be wrong"):
        output.must_fail(check, 4)
