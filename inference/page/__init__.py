"""The web page of the server: HTML, style and scripts, joined to one document without a build step.

Which file does what: `index.html` holds the frame, `page.css` the looks, `words.js` the texts in
both languages and the table of settings, `server.js` the requests, `talks.js` what the browser
keeps, `view.js` how answers and tokens are shown, `talking.js` questions and answers, `app.js`
all around them: choices, panels, buttons.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

SCRIPTS = ("words.js", "server.js", "talks.js", "view.js", "talking.js", "app.js")
"""In the order in which they are joined."""


@cache
def page_html() -> str:
    """The page as one document, which asks no other host for anything."""
    style = re.sub(r"\s*([{};,])\s*|(:) +", r"\1\2", _read("page.css")).replace(";}", "}")
    script = "\n".join(_read(name) for name in SCRIPTS)
    page = _read("index.html").replace("{{policy}}", policy(style, script))
    return page.replace("{{style}}", style).replace("{{script}}", script)


def policy(style: str, script: str) -> str:
    """The Content Security Policy: this style and this script run, and nothing that an answer could
    bring in. Only the page's own server is asked.

    `eval` is allowed for programs that drive the page: playwright's `wait_for_function` needs it.
    Our scripts never call it, so an answer can't reach it.
    """
    rules = {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "script-src": f"{_hash(script)} 'unsafe-eval'",
        "style-src": _hash(style),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash(text: str) -> str:
    """How a policy names a text inside the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    """A file of this folder, without its comments and indentation."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return re.sub(r"^(( *//| */\*| +\*).*\n)* *", "", text, flags=re.MULTILINE)
