"""Pages: one HTML file each, which needs nothing else, not even a network."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from draft.report.data import versions
from draft.report.withheld import page_without_withheld

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
    page = _environment().get_template(template).render(versions=versions(), **values)
    return page_without_withheld(page)


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
