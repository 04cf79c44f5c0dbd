"""LaTeX's symbols in Unicode: facts only, read by maths.py."""

_SYMBOLS = """
alpha α beta β gamma γ delta δ epsilon ϵ varepsilon ε zeta ζ eta η theta θ vartheta ϑ iota ι kappa κ lambda λ mu μ nu ν xi ξ
omicron ο pi π varpi ϖ rho ρ varrho ϱ sigma σ varsigma ς tau τ upsilon υ phi ϕ varphi φ chi χ psi ψ omega ω
Gamma Γ Delta Δ Theta Θ Lambda Λ Xi Ξ Pi Π Sigma Σ Upsilon Υ Phi Φ Psi Ψ Omega Ω
le ≤ leq ≤ leqslant ≤ ge ≥ geq ≥ geqslant ≥ ne ≠ neq ≠ ll ≪ gg ≫ approx ≈ sim ∼ simeq ≃ cong ≅ equiv ≡ propto ∝ prec ≺ succ ≻
preceq ≼ succeq ≽ asymp ≍ doteq ≐ models ⊨ vdash ⊢ dashv ⊣ perp ⊥ parallel ∥ mid ∣ nmid ∤ lt < gt >
in ∈ notin ∉ ni ∋ subset ⊂ supset ⊃ subseteq ⊆ supseteq ⊇ subsetneq ⊊ supsetneq ⊋ nsubseteq ⊈ cup ∪ cap ∩ setminus ∖ emptyset ∅
varnothing ∅ bigcup ⋃ bigcap ⋂ sqcup ⊔ sqcap ⊓ complement ∁
pm ± mp ∓ times × div ÷ cdot ⋅ ast ∗ star ⋆ circ ∘ bullet ∙ oplus ⊕ ominus ⊖ otimes ⊗ oslash ⊘ odot ⊙ wedge ∧ land ∧ vee ∨ lor ∨
neg ¬ lnot ¬ bigoplus ⨁ bigotimes ⨂ bigwedge ⋀ bigvee ⋁ uplus ⊎ wr ≀ dagger † ddagger ‡ amalg ⨿ triangle △ square □ Box □
blacksquare ■ diamond ⋄ Diamond ◇
to → rightarrow → leftarrow ← gets ← uparrow ↑ downarrow ↓ updownarrow ↕ leftrightarrow ↔ Rightarrow ⇒ Leftarrow ⇐ Uparrow ⇑
Downarrow ⇓ Leftrightarrow ⇔ implies ⟹ impliedby ⟸ iff ⟺ longrightarrow ⟶ longleftarrow ⟵ longleftrightarrow ⟷
Longrightarrow ⟹ Longleftarrow ⟸ Longleftrightarrow ⟺ mapsto ↦ longmapsto ⟼ hookrightarrow ↪ hookleftarrow ↩ nearrow ↗
searrow ↘ swarrow ↙ nwarrow ↖ rightharpoonup ⇀ leftharpoonup ↼ rightleftharpoons ⇌ leadsto ⇝ rightsquigarrow ⇝
sum ∑ prod ∏ coprod ∐ int ∫ iint ∬ iiint ∭ oint ∮ partial ∂ nabla ∇ infty ∞ forall ∀ exists ∃ nexists ∄ therefore ∴ because ∵
top ⊤ bot ⊥ angle ∠ measuredangle ∡ degree ° prime ′ hbar ℏ ell ℓ Re ℜ Im ℑ aleph ℵ beth ℶ wp ℘ imath ı jmath ȷ surd √ eth ð
ldots … dots … dotsc … dotsb … dotsm ⋯ cdots ⋯ vdots ⋮ ddots ⋱ colon : coloneqq ≔ triangleq ≜ checkmark ✓ S § P ¶ pounds £
copyright © euro € yen ¥ langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋ lceil ⌈ rceil ⌉ lvert | rvert | vert | lVert ‖ rVert ‖ Vert ‖
lbrace { rbrace } lbrack [ rbrack ] backslash \\ heartsuit ♡ spadesuit ♠ clubsuit ♣ diamondsuit ♢ flat ♭ natural ♮ sharp ♯
oiint ∯ trianglelefteq ⊴ trianglerighteq ⊵ lesssim ≲ gtrsim ≳ varDelta Δ And & AA Å aa å ae æ AE Æ oe œ OE Œ o ø O Ø ss ß
"""
_words = _SYMBOLS.split()
SYMBOLS = dict(zip(_words[::2], _words[1::2], strict=True))
NAMES = frozenset(  # that are written upright, with space around
    """
    arccos arcsin arctan arg argmax argmin cos cosh cot coth csc deg det dim erf exp gcd hom inf ker lcm lg lim liminf limsup ln
    log max min Pr rank sec sin sinh sup tan tanh tr
    """.split()  # noqa: SIM905
)
SPACES = {
    ",": " ",
    ":": " ",
    ";": " ",
    ">": " ",
    " ": " ",
    "!": "",
    "quad": "  ",
    "qquad": "    ",
    "enspace": " ",
    "/": "",
}
SILENT = frozenset(  # that say how a thing looks and nothing else
    """
    left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr bigm Bigm limits nolimits displaystyle
    textstyle scriptstyle scriptscriptstyle nonumber notag rm bf it cal mathstrut strut hfill centering hline
    """.split()  # noqa: SIM905
)
TEXTS = frozenset(
    """
    text textrm textbf textit textsf texttt textnormal mbox hbox mathrm mathit mathsf mathtt operatorname
    """.split()  # noqa: SIM905
)
PLAIN = frozenset(
    """
    boxed fbox displaylines mathop mathrel mathbin mathord substack ensuremath phantomsection
    """.split()  # noqa: SIM905
)
ACCENTS = {
    "hat": "\u0302", "widehat": "\u0302", "bar": "\u0304", "overline": "\u0305", "tilde": "\u0303", "widetilde": "\u0303",
    "vec": "\u20d7", "dot": "\u0307", "ddot": "\u0308", "acute": "\u0301", "grave": "\u0300", "breve": "\u0306",
    "check": "\u030c", "underline": "\u0332",
}  # fmt: skip
SUPERSCRIPTS = dict(
    zip(
        "0123456789+-=()abcdefghijklmnoprstuvwxyzABDEGHIJKLMNOPRTUVWβγδθ∘′†*",
        "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻᴬᴮᴰᴱᴳᴴᴵᴶᴷᴸᴹᴺᴼᴾᴿᵀᵁⱽᵂᵝᵞᵟᶿ°′†*",
        strict=True,
    )
)
SUBSCRIPTS = dict(zip("0123456789+-=()aehijklmnoprstuvxβγρφχ", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓᵦᵧᵨᵩᵪ", strict=True))
_TAKEN = dict(zip("CHNPQRZ", "ℂℍℕℙℚℝℤ", strict=True))
_SCRIPT = dict(zip("BEFHILMRego", "ℬℰℱℋℐℒℳℛℯℊℴ", strict=True))
_FRAKTUR = dict(zip("CHIRZ", "ℭℌℑℜℨ", strict=True))


def _alphabet(capital: int, small: int, digit: int = 0, taken: dict[str, str] | None = None) -> dict[str, str]:
    """Letters in another style, which begin at these code points; `taken` are elsewhere."""
    letters = {chr(65 + at): chr(capital + at) for at in range(26)} | {
        chr(97 + at): chr(small + at) for at in range(26)
    }
    return letters | ({str(at): chr(digit + at) for at in range(10)} if digit else {}) | (taken or {})


_BOLD = _alphabet(0x1D400, 0x1D41A, 0x1D7CE)
ALPHABETS = {
    "mathbb": _alphabet(0x1D538, 0x1D552, 0x1D7D8, _TAKEN),
    "mathcal": _alphabet(0x1D49C, 0x1D4B6, 0, _SCRIPT),
    "mathscr": _alphabet(0x1D49C, 0x1D4B6, 0, _SCRIPT),
    "mathfrak": _alphabet(0x1D504, 0x1D51E, 0, _FRAKTUR),
    "mathbf": _BOLD,
    "boldsymbol": _BOLD,
    "bm": _BOLD,
}
MATRICES = {
    "matrix": ("", ""), "pmatrix": ("(", ")"), "bmatrix": ("[", "]"), "Bmatrix": ("{", "}"), "vmatrix": ("|", "|"),
    "Vmatrix": ("‖", "‖"), "smallmatrix": ("", ""), "array": ("", ""), "cases": ("{ ", ""),
}  # fmt: skip
ROWS = frozenset(
    """
    align align* aligned alignat alignat* alignedat split gather gather* gathered equation equation* multline eqnarray
    """.split()  # noqa: SIM905
)
