"""How values are written for people: sizes, times, JSON, small charts. All of it escapes what it is given."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from markupsafe import Markup, escape

TITLES = {
    400: "That cannot be",
    401: "Sign in",
    403: "Not allowed",
    404: "Not found",
    409: "Not now",
    429: "Too many at once",
    503: "Not available",
}
# The last string of a text that was cut has no end: were that no match, each quote in it would be tried as a beginning.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|-?\d[\d.eE+-]*|\b(?:true|false|null)\b')
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]')
_SUMMARY = 140
#: Characters of JSON that are shown of one value, and of each in a list.
_MOST_PRETTY, _PREVIEW = 500_000, 2_000
#: Values of one JSON text that are marked by kind.
_MOST_MARKS = 2_000
#: Length times depth up to which JSON is laid out.
_MOST_GROWTH = 20_000_000


def number(value: float) -> str:
    """``12,345``; small rates with a decimal."""
    if isinstance(value, int) or value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def size(value: float) -> str:
    """``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def duration(seconds: float) -> str:
    """``350 ms``, ``12 s``, ``3 h 5 min``."""
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} days"


def moment(value: datetime | float) -> Markup:
    """A time as people read it, in UTC, exact for machines."""
    when = value if isinstance(value, datetime) else datetime.fromtimestamp(value, UTC)
    when = when.astimezone(UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(when.isoformat(), when.strftime("%Y-%m-%d %H:%M:%S"))


def ago(value: datetime | float) -> str:
    """``5 min ago``."""
    then = value.timestamp() if isinstance(value, datetime) else value
    return f"{duration(max(0.0, time.time() - then))} ago"


def pretty(text: str, most: int = _MOST_PRETTY) -> Markup:
    """JSON in lines, the first values marked by kind; numbers stay as they are written. At most ``most`` characters.

    Large texts take tens of milliseconds: a page that shows one calls this in a thread.
    """
    laid_out = _laid_out(text)
    shown = laid_out[:most]
    out, at = list[str](), 0
    # marking every value of a large text would take seconds, and the browser more
    for found in itertools.islice(_TOKEN.finditer(shown), _MOST_MARKS):
        token = found.group()
        if token[0] == '"':
            kind = "key" if shown.startswith(":", found.end()) else "string"
        else:
            kind = "number" if token[0] in "-0123456789" else "word"
        out.append(f'{escape(shown[at : found.start()])}<span class="json-{kind}">{escape(token)}</span>')
        at = found.end()
    out.append(escape(shown[at:]))
    if len(shown) < len(laid_out):
        out.append("\n… the rest is left out")
    return Markup("".join(out))  # noqa: S704 - made of escaped pieces


def preview(text: str) -> Markup:
    """Short JSON as ``pretty`` shows it, of a longer one the beginning as it is stored: a page has hundreds."""
    if len(text) <= _PREVIEW:
        return pretty(text, 2 * _PREVIEW)
    return escape(text[:_PREVIEW]) + "\n… open it to see the rest"


def _laid_out(text: str) -> str:
    """JSON in lines; as it is where it is no JSON, or would grow beyond measure by its indentation."""
    if len(text) > _MOST_PRETTY or len(text) * _depth(text) > _MOST_GROWTH:
        return text
    try:
        return msgspec.json.format(text.encode(), indent=2).decode()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        depth += (bracket in "[{") - (bracket in "]}")
        deepest = max(deepest, depth)
    return deepest


def summary(text: str) -> str:
    """The beginning of a text, in one line."""
    return text if len(text) <= _SUMMARY else text[:_SUMMARY] + " …"


def sentence(text: str) -> str:
    """A message of the wire, which begins in lower case, as a sentence."""
    return text[:1].upper() + text[1:]


def marked(text: str) -> Markup:
    """A text in which backticks mark code."""
    pieces = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else escape(p) for n, p in enumerate(pieces))


def told(value: Any) -> str:
    """A value of the audit log: a text, a number, or a list of them or of objects, in words."""
    if isinstance(value, Mapping):
        return " ".join(str(one) for one in value.values() if one not in ("", None))
    return ", ".join(map(told, value)) if isinstance(value, list | tuple) else str(value)


def criteria(query: Iterable[Iterable[tuple[str, str]]]) -> str:
    """Criteria, as keys and values, as the event browser writes them: one a line."""
    return "\n".join(" ".join(f"{_quoted(key)}={_quoted(value)}" for key, value in one) for one in query)


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[^\s=\"]+", text) else json.dumps(text, ensure_ascii=False)


def sparkline(values: Sequence[float], label: str, *, width: int = 140, height: int = 36) -> Markup:
    """A chart of rates over the last half hour, the newest on the right; ``label`` says what is counted."""
    if len(values) < 2:
        return Markup('<span class="quiet">gathering …</span>')
    peak = max(values)
    top, step = (peak or 1.0) * 1.08, width / (len(values) - 1)
    points = [f"{index * step:.1f},{height - 1 - value / top * (height - 3):.1f}" for index, value in enumerate(values)]
    text = f"{label}: {number(values[-1])} now, at most {number(peak)}"
    return Markup(
        '<svg class="chart" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{text}" '
        'preserveAspectRatio="none"><title>{text}</title><polygon class="area" points="0,{h} {points} {w},{h}"/>'
        '<polyline class="line" points="{points}"/></svg>'
    ).format(w=width, h=height, text=text, points=" ".join(points))


FILTERS: dict[str, Callable[..., Any]] = {
    "number": number,
    "size": size,
    "duration": duration,
    "moment": moment,
    "ago": ago,
    "preview": preview,
    "pretty": pretty,
    "sentence": sentence,
    "summary": summary,
    "criteria": criteria,
    "marked": marked,
    "told": told,
}
GLOBALS: dict[str, Callable[..., Any]] = {"sparkline": sparkline}
