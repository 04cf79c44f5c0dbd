"""Formulas: where they are, what they look like, and that nothing of them or around them is lost, however they come."""

import re
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamachat.ui.markdown import MarkdownStream, draw
from llamachat.ui.markdown.formulas import formulas
from llamachat.ui.markdown.maths import shown
from llamachat.ui.theme import load

SGR = re.compile(r"\x1b\[[0-9;]*m")


def plain(text: str, width: int = 200, theme: str = "dark") -> list[str]:
    stream = MarkdownStream()
    return [SGR.sub("", line) for line in draw(stream.feed(text) + stream.finish(), width, load(theme))]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (r"x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}", "x = (-b ± √(b² - 4ac))/(2a)"),
        (r"\frac{1}{2} + \dfrac12 x + 2\frac{1}{2}", "1/2 + (1/2) x + 2 1/2"),
        (r"\frac{\partial f}{\partial t} = \frac{n(n+1)}{k(n-k)!}", "∂f/∂t = n(n+1)/(k(n-k)!)"),
        (r"\left(\frac{d}{dx}\right)^2 f(x)", "(d/dx)² f(x)"),
        (r"\sum_{i=1}^{n} x_i \le \infty", "∑ᵢ₌₁ⁿ xᵢ ≤ ∞"),
        (r"\int_0^\infty e^{-x}\,dx", "∫₀^∞ e⁻ˣ dx"),
        (r"e^{-x^2} + x_{q,r} + a^{b^{c^d}}", "e^(-x²) + x_(q,r) + a^(b^cᵈ)"),
        (r"f: \mathbb{R}^n \to \mathbb R, \mathcal{L}(\boldsymbol\theta)", "f: ℝⁿ → ℝ, ℒ(θ)"),
        (r"\alpha\beta \in \Omega, x\in A, 2\pi r", "αβ ∈ Ω, x∈A, 2πr"),
        (r"\sin\theta + 2\cos x + \log_2 n + \lim_{x \to 0}", "sin θ + 2 cos x + log₂ n + lim_(x → 0)"),
        (r"T_{\text{max}} = 90^\circ \text{ in } A^T, f''", "Tₘₐₓ = 90° in Aᵀ, f′′"),
        (r"\hat{y} \neq \vec v \not= \overline{AB}", "ŷ ≠ v⃗ ≠ A̅B̅"),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "(1 2; 3 4)"),
        (r"|x| = \begin{cases} x & x \ge 0 \\ -x, & \text{else} \end{cases}", "|x| = { x, x ≥ 0; -x, else"),
        (r"\binom{n}{k} = \boxed{42} \pmod{7}", "(n choose k) = 42 (mod 7)"),
        (r"\{1\} \% \$ \& \_ \#", "{1} % $ & _ #"),
        (r"\foo{x^2} \xrightarrow{f} \bar", r"\foo{x²} \xrightarrow{f} \bar"),
        (r"\frac{a", r"\frac{a"),
        (r"x^{2 + y}}", "x²⁺ʸ}"),
        ("a % b ~ c\\", "a % b c\\"),
    ],
)
def test_a_formula_is_shown_in_unicode_as_far_as_that_goes(source: str, line: str) -> None:
    assert shown(source) == unicodedata.normalize("NFC", line)


@pytest.mark.parametrize("deep", ["{", "^{", r"\frac{", r"\frac", r"\sqrt", "^", r"\left", r"\begin{cases}", r"\text{"])
def test_what_is_nested_too_deep_is_shown_as_it_is_written(deep: str) -> None:
    assert unicodedata.normalize("NFKC", shown("x" + deep * 500 + "y")).count("y") == 1


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (r"The roots \(x_1 * y_2\) and \( x * z \) are *here*.", ["The roots x₁ * y₂ and x * z are here."]),
        (r"$x_i * y_j$, ($\alpha$) and **$y_1$-$z$**", ["xᵢ * yⱼ, (α) and y₁-z"]),
        ("So\n\\[\n- x\n= \\frac{1}{2}\n\n# not\n\\]", ["So", "- x", "= 1/2", "", "# not"[2:], "]"]),
        ("$$\na\n===\n$$ so", ["a", "=== so"]),
        ("$$E = mc^2$$", ["E = mc²"]),
        ("1. one\n   \\[\n   x^2\n   \\]\n2. two\n$$\n- y\n$$", ["1. one", "   x²", "2. two", "   - y"]),
        ("> \\[\n> = b_1\n> \\]", ["│ = b₁"]),
        ("\\begin{align}\na &= b_1 \\\\\n- &= *c*\n\\end{align}", ["a = b₁", "- = *c*"]),
        ("|a|b|\n|-|-|\n|$x^2$|\\(y_1\\)|", ["a  │ b", "───┼───", "x² │ y₁"]),
        ("# On $\\pi$", ["On π"]),
        (r"\( x^{2", ["x²"]),
    ],
)
def test_markdown_eats_nothing_of_a_formula(text: str, lines: list[str]) -> None:
    assert plain(text) == lines


@pytest.mark.parametrize(
    "text",
    [
        "costs $5 and $10, or $20-$30; US$5 and 6$, $3.",
        "from $PATH:$HOME and ${a}/${b} to $$ or $$$",
        "price: $$ and $$",
        "a $x\ny$ b",
        "$ x$ and $y $",
    ],
)
def test_money_and_variables_are_no_formulas(text: str) -> None:
    assert plain(text) == text.split("\n")


def test_escapes_and_code_stay_what_they_are() -> None:
    assert plain(r"see \[1\], \(a note\) and \[x\] \_a\_ \$5") == ["see [1], (a note) and [x] _a_ $5"]
    assert plain("`$x_1$` and ``\\(x\\)``") == ["$x_1$ and \\(x\\)"]
    assert plain("```\n$x_1$ \\(y\\)\n```")[1] == "$x_1$ \\(y\\)"
    assert plain("a $$ b\n- c\n- d") == ["a $$ b", "• c", "• d"]


def test_without_styles_a_formula_is_shown_as_it_is_written() -> None:
    text = r"so \(x_1\) and $\alpha$"
    assert plain(text, theme="none") == [text]


def test_a_formula_longer_than_a_paragraph_stays_one() -> None:
    lines = plain("\\[\n" + "- x_1 *y* \\alpha\n" * 30 + "\\]\n# End")
    assert lines == ["- x₁ *y* α"] * 30 + ["End"]


@pytest.mark.parametrize(
    ("piece", "line"), [("a $x_1", "a x₁"), ("a $x", "a $x"), (r"a \(x_1 *b", "a x₁ *b"), ("$$\nx^2", "x²")]
)
def test_an_open_formula_looks_at_once_as_it_is_going_to(piece: str, line: str) -> None:
    stream = MarkdownStream()
    stream.feed(piece)
    assert [SGR.sub("", each) for each in draw(stream.tail, 40, load("dark"))] == [line]


SIGNS = r"""
    \( \) \[ \] $ $$ ^ _ { } \frac \sqrt[ ] & \\ \begin{cases} \end{cases} \begin{align} \left( \left. \alpha \text{ \hat
    \mathbb ** * ` - + = \\[
    """.split()  # noqa: SIM905
TEXT = st.lists(st.sampled_from([*SIGNS, " ", " ", "\n", "\n\n"]) | st.integers(1000, 9999).map(str), max_size=30).map(
    "".join
)


@pytest.mark.parametrize("piece", [r"\( ", r"word \( ", "$$x ", r"\[ y", "$", "$x_", r"\frac{a}{b} ", r"\begin{align}"])
def test_a_hostile_text_takes_no_longer_than_its_length(piece: str) -> None:
    """Quadratic searches would take minutes."""
    text, before = piece * (50_000 // len(piece)), time.process_time()
    formulas(text)
    shown(text)
    assert time.process_time() - before < 3


@settings(deadline=None, max_examples=50)
@given(TEXT)
def test_no_word_is_lost_or_doubled(text: str) -> None:
    """Numbers of the source are on the screen, in their order, styles and positions of digits apart."""
    screen = unicodedata.normalize("NFKC", "".join(plain(text)).replace("⁄", ""))
    assert re.sub(r"\D", "", screen) == re.sub(r"\D", "", text)
