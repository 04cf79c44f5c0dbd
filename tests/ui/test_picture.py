"""The README's pictures show the lines that a terminal would."""

from pictures import ansi_svg, color
from rich.text import Text


def test_a_picture_has_the_text_and_its_styles_and_runs_nothing() -> None:
    svg = ansi_svg([Text.assemble("plain ", ("red", "bold red")), Text("<script>x</script>")], "a title")
    assert svg.startswith("<svg")
    assert "a&#160;title" in svg and "red" in svg and "#cc555a" in svg
    assert "<script>" not in svg


def test_a_terminals_colours_keep_their_names() -> None:
    names = ("default", "cyan", "brightcyan", "brown", "af8700")
    assert [color(name) for name in names] == [None, "cyan", "bright_cyan", "yellow", "#af8700"]
