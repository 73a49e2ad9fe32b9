"""The page at /docs: the OpenAPI document as plain HTML, without scripts or anything from afar."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font-family:ui-monospace,monospace;font-size:.9em}"
    "pre{background:#f4f4f4;padding:.8rem;overflow:auto}table{border-collapse:collapse}"
    "td,th{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}"
    "summary{cursor:pointer;padding:.4rem 0}"
)
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


def render(schema: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    operations = [
        _operation(schema, method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    info = schema["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>{escape(info['title'])}</title><style>{STYLE}</style>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"
        f"<p>{escape(info.get('description', ''))}</p>"
        '<p>The same for programs: <a href="openapi.json">openapi.json</a></p>'
        + "".join(operations)
    )


def _operation(schema: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [
        (p["name"], p["in"], _type(schema, p["schema"]), p.get("description", ""))
        for p in operation.get("parameters", [])
    ]
    parts = [f"<p>{escape(operation.get('description', ''))}</p>", _table(rows)]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body:
        model = _resolve(schema, body["schema"])
        fields = model.get("properties", {}).items()
        parts.append(
            _table([(n, "body", _type(schema, f), f.get("description", "")) for n, f in fields])
        )
        example = json.dumps(model.get("example"), indent=2, ensure_ascii=False)
        parts.append(
            f"<p>For example</p><pre>{escape(example)}</pre>" if "example" in model else ""
        )
    replies = "".join(
        f"<li>{escape(status)}: {escape(reply['description'])}</li>"
        for status, reply in operation["responses"].items()
    )
    return (
        f"<details><summary><code>{method.upper()} {escape(path)}</code> "
        f"{escape(operation.get('summary', ''))}</summary>"
        f"{''.join(parts)}<p>Replies</p><ul>{replies}</ul></details>"
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr><th>name<th>in<th>type<th>meaning</tr>{body}</table>" if rows else ""


def _resolve(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    name = part.get("$ref", "").rsplit("/", 1)[-1]
    return schema["components"]["schemas"][name] if name else part


def _type(schema: dict[str, Any], part: dict[str, Any]) -> str:
    """Type, range and default in a few words."""
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(_type(schema, option) for option in part["anyOf"]))
    if "$ref" in part:
        return str(part["$ref"]).rsplit("/", 1)[-1]
    words = [str(part.get("type", "anything"))]
    if "items" in part:
        words.append(f"of {_type(schema, part['items'])}")
    names = {"minimum": "from", "maximum": "to", "default": "default"}
    words += [f"{word} {json.dumps(part[key])}" for key, word in names.items() if key in part]
    return " ".join(words)
