"""Pages: one HTML file each, which needs nothing else, not even a network."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from draft.report.data import versions
from draft.report.withheld import page_without_withheld

_POLICY = "the policy"
_LARGEST_UNTOUCHED = 128
_LARGEST = 320


def render(template: str, **values: Any) -> str:
    """Render a page.

    Args:
        template: The template's path in the package `draft`, such as ``"probe/page.html.j2"``; it extends
            ``report/layout.html.j2``, which has the head, the header, the provenance and the footer.
        **values: What the template shows; what the layout needs is in its first lines.

    Returns:
        The page. Text is escaped, a missing value is an error.
    """
    page = _environment().get_template(template).render(versions=versions(), policy=_POLICY, **values)
    page = page_without_withheld(page)
    return page.replace(_POLICY, policy(page), 1)


def policy(page: str) -> str:
    """What a browser may do with a page: show its pictures and its own styles, and nothing else.

    Args:
        page: The page; its style elements are named by their hashes, so that no other one counts.

    Returns:
        A content security policy. Without scripts, frames, forms and addresses; style attributes, which charts have,
        are allowed.
    """
    styles = dict.fromkeys(re.findall(r"<style\b[^>]*>(.*?)</style>", page, re.DOTALL))
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in styles]
    elements = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"style-src-elem {elements}; base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("draft", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["soft"] = soft_breaks
    return environment


def soft_breaks(text: str) -> Markup:
    """Escaped text that may be broken after each underscore, so that long names fit narrow columns.

    Args:
        text: Any text.

    Returns:
        HTML.
    """
    return Markup(str(escape(text)).replace("_", "_<wbr>"))


def data_uri(path: Path) -> str:
    """A picture for a page: small ones untouched, larger ones shrunk and as WebP.

    Args:
        path: The picture's file.

    Returns:
        The address that holds it.
    """
    with Image.open(path) as picture:
        if max(picture.size) <= _LARGEST_UNTOUCHED:
            return png_uri(path)
        smaller = picture.convert("RGB")
        smaller.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    smaller.save(stream, "WEBP", quality=86, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def png_uri(path: Path) -> str:
    """A PNG file for a page, untouched.

    Args:
        path: The file.

    Returns:
        The address that holds it.
    """
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
