"""A griffe extension: shows the docstrings' maths, examples and references in Markdown."""

import re
import textwrap
from typing import Any

import griffe

_MATH = re.compile(r"^( *)\.\. math:: ?(.*\n(?:(?:\1 +.*)?\n)*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^>>> .*\n(?:.+\n)*", re.MULTILINE)
_INLINE_MATH = re.compile(r":math:`([^`]*)`")
_REFERENCE = re.compile(r":(?:func|class|mod):`([^`]*)`")


def to_markdown(text: str) -> str:
    """Rewrite math directives, doctests and cross references."""

    def display(match: re.Match[str]) -> str:
        indent, body = match.groups()
        body = textwrap.dedent(body).strip()
        lines = textwrap.indent(f"\\[\n{body}\n\\]", indent)
        return f"{lines}\n\n"

    text = _MATH.sub(display, f"{text}\n")
    text = _EXAMPLE.sub(lambda match: f"```pycon\n{match.group()}```\n", text)
    text = _INLINE_MATH.sub(r"\\(\1\\)", text)
    return _REFERENCE.sub(r"`\1`", text).rstrip("\n")


class RenderDocstrings(griffe.Extension):
    """Apply :func:`to_markdown` to every docstring."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for each object it collects."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
