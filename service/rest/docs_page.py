"""/docs: the OpenAPI description as one plain page that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

Schema = dict[str, Any]
STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}code{background:#eee}"
    "td{padding:.2rem .8rem .2rem 0;vertical-align:top}"
)


def page(document: Schema) -> str:
    """Routes first, then every model with its fields."""
    title = escape(document["info"]["title"])
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"]
    parts.append(f"<p>{escape(document['info'].get('description', ''))}</p><p>For programs: <a href=/openapi.json>openapi.json</a></p>")
    parts += ["<h2>Routes</h2>", *_routes(document["paths"]), "<h2>Models</h2>", *_models(document["components"]["schemas"])]
    return "\n".join(parts)


def _routes(paths: Schema) -> Iterator[str]:
    for path, operations in paths.items():
        for method, operation in operations.items():
            yield f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(operation.get('description', ''))}</p>"
            for kind, body in operation.get("requestBody", {}).get("content", {}).items():
                yield _body(kind, body["schema"])
            rows = [(p["name"], p.get("schema", {}), p.get("description", "")) for p in operation.get("parameters", ())]
            yield _table(rows)


def _body(kind: str, schema: Schema) -> str:
    """A model by its name; a form, which is no model, by its fields."""
    fields, required = schema.get("properties", {}), schema.get("required", [])
    if not fields:
        return f"<p>Body: {_type(schema)}</p>"
    rows = [(name, node, f"{'Required. ' if name in required else ''}{node.get('description', '')}") for name, node in fields.items()]
    return f"<p>Body: {escape(kind)}</p>{_table(rows)}"


def _models(schemas: Schema) -> Iterator[str]:
    for name, schema in sorted(schemas.items()):
        yield f"<h3 id={escape(name)}>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>"
        yield _table([(field, node, node.get("description", "")) for field, node in schema.get("properties", {}).items()])


def _table(rows: list[tuple[str, Schema, str]]) -> str:
    cells = "".join(f"<tr><td><code>{escape(name)}</code><td>{_type(node)}<td>{escape(words)}" for name, node, words in rows)
    return f"<table>{cells}</table>" if rows else ""


def _type(node: Schema) -> str:
    if "$ref" in node:
        name = escape(node["$ref"].rpartition("/")[2])
        return f"<a href=#{name}>{name}</a>"
    if "anyOf" in node or "oneOf" in node:
        return " or ".join(_type(option) for option in node.get("anyOf") or node["oneOf"])
    if node.get("type") == "array":
        return f"list of {_type(node.get('items', {}))}"
    if node.get("format") == "binary":
        return "bytes"
    if "const" in node or "enum" in node:
        return escape(" or ".join(map(str, node.get("enum", [node.get("const")]))))
    return escape(str(node.get("type", "anything")))
