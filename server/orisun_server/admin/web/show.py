"""How values are written for people: sizes, times, JSON, small charts. All of it escapes what it is given."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
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
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|\b(?:true|false|null)\b')
_SUMMARY = 140
#: Characters of JSON that are shown.
_MOST_PRETTY = 500_000


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


def pretty(text: str) -> Markup:
    """JSON in lines, its values marked by kind; numbers stay as they are written."""
    try:
        laid_out = msgspec.json.format(text.encode(), indent=2).decode()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return escape(text[:_MOST_PRETTY])
    if len(laid_out) > _MOST_PRETTY:
        return escape(laid_out[:_MOST_PRETTY]) + "\n… the rest is left out"
    out, at = [], 0
    for found in _TOKEN.finditer(laid_out):
        token = found.group()
        out.append(escape(laid_out[at : found.start()]))
        at = found.end()
        if token[0] == '"':
            kind = "key" if laid_out.startswith(":", at) else "string"
        else:
            kind = "number" if token[0] in "-0123456789" else "word"
        out.append(Markup('<span class="json-{}">{}</span>').format(kind, token))
    out.append(escape(laid_out[at:]))
    return Markup("").join(out)


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
    "pretty": pretty,
    "sentence": sentence,
    "summary": summary,
    "criteria": criteria,
    "marked": marked,
}
GLOBALS: dict[str, Callable[..., Any]] = {"sparkline": sparkline}
