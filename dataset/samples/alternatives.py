"""Lists of wordings in the sample tables, written short.

Wordings are separated by "|". (a,b,) in a wording stands for each of its parts, the last of which
may be nothing: "你(会,能)画画吗" is 你会画画吗 and 你能画画吗. {w}, {t} and {d} are lists of their
own (`MACROS`).
"""

import itertools
import re

MACROS = {
    "{w}": "(我,我今天,今天,最近,我最近,现在,我现在,)",
    "{t}": "(我,今天,我今天,刚刚,我刚刚,昨天,我昨天,)",
    "{d}": "(好,很,特别,有点,真的好,真的很)",
}
"""Who and when, the same for what happened, how much."""
_CHOICE = re.compile(r"\(([^()]*,[^()]*)\)")


def expanded(wording: str) -> list[str]:
    """The wording with each combination of its alternatives."""
    for name, choice in MACROS.items():
        wording = wording.replace(name, choice)
    parts = _CHOICE.split(wording)  # text, alternatives, text, alternatives ... text
    choices = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def wordings(cell: str) -> list[str]:
    """Every wording of a table's cell, in order, each once. Line breaks around a wording don't
    count."""
    listed = (wording.strip() for wording in cell.split("|"))
    return list(dict.fromkeys(one for wording in listed if wording for one in expanded(wording)))
