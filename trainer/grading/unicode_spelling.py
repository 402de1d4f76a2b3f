"""Unicode signs -> the ASCII LaTeX that means the same.

In: any text. Out: the text with mathematical signs, fractions, powers, digits of any script and compatibility forms
(fullwidth, mathematical alphabets: Unicode's NFKC) spelled in ASCII; letters of other scripts stay. Signs whose NFKC
form would change a value (5² is not 52, 2½ is not 21/2) are spelled first.
"""

import re
import unicodedata

_SIGNS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "×": "*", "·": "*", "⋅": "*", "∗": "*", "•": "*",
        "✕": "*", "÷": "/", "⁄": "/", "∕": "/", "∶": ":", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ",
        "º": r"^\circ ", "˚": r"^\circ ", "±": r"\pm ", "∓": r"\mp ", "≤": r"\le ", "≦": r"\le ", "⩽": r"\le ",
        "≥": r"\ge ", "≧": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≃": r"\approx ", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∅": r"\emptyset ", "∧": r"\land ",
        "∨": r"\lor ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ",
        "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega ", "σ": r"\sigma ", "ρ": r"\rho ", "τ": r"\tau ",
        "∠": r"\angle ", "△": r"\triangle ", "ℝ": r"\mathbb{R}", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"',
        "。": ".", "、": ",", "⟨": "(", "⟩": ")", "〈": "(", "〉": ")", "¢": r"\text{ cents}", "‰": r"\text{ permille}",
        "\u00a0": "~", "\u2007": "~", "\u2009": "~", "\u200a": "~", "\u202f": "~", "\u200b": "", "\u200c": "",
        "\u200d": "", "\u2060": "", "\u2061": "", "\u2062": "*", "\ufeff": "", "\ufe0f": "",
    }
)  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₐₑᵢⱼₖₙₓ", "0123456789+-aeijknx", strict=True))
_SUPERSCRIPT_RUN = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_SUBSCRIPT_RUN = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_ROOT = re.compile(r"([√∛∜])\s*(?:([0-9]+(?:\.[0-9]+)?|[A-Za-z])|(?=[({\\]))")
_ROOT_COMMANDS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_OVERLINED = re.compile("(?:[0-9]\u0305)+")  # a combining bar over repeating digits


def spell_in_ascii(text: str) -> str:
    """Returns `text` with every sign that has an ASCII LaTeX spelling in that spelling."""
    text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{''.join(_SUPERSCRIPTS[sign] for sign in run[0])}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: f"_{{{''.join(_SUBSCRIPTS[sign] for sign in run[0])}}}", text)
    text = _OVERLINED.sub(lambda run: rf"\overline{{{run[0][::2]}}}", text)
    text = _ROOT.sub(lambda root: _ROOT_COMMANDS[root[1]] + (f"{{{root[2]}}}" if root[2] else ""), text)
    text = text.translate(_SIGNS)
    return text if text.isascii() else "".join(map(_spell_character, text)).translate(_SIGNS)


def _spell_character(character: str) -> str:
    if character.isascii():
        return character
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    decomposed = unicodedata.normalize("NFKC", character)
    numerator, slash, denominator = decomposed.partition("⁄")
    if slash and numerator.isdecimal() and denominator.isdecimal():  # ½ and its like
        return rf"\frac{{{numerator}}}{{{denominator}}}"
    return decomposed
