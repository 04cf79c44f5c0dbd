"""Pictures show the lines that a terminal would."""

from llamachat.ui.picture import ansi_svg


def test_a_picture_has_the_text_and_its_styles_and_runs_nothing() -> None:
    svg = ansi_svg(["plain \x1b[1;31mred\x1b[0m", "<script>x</script>"], 40, "a title")
    assert svg.startswith("<svg")
    assert "a&#160;title" in svg and "red" in svg and "#cc555a" in svg
    assert "<script>" not in svg
