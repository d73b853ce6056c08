"""Answers of both APIs, the agent's and the server's, and what their OpenAPI says of them."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from tunneld.control.guard import Problem, json_bytes
from tunneld.control.models import problem
from tunneld.errors import CODES, VisitorError

__all__ = ["add_errors", "describe", "docs", "json_answer", "text_docs"]

ALWAYS: Final = ("web_page_refused", "misdirected")
"""What the control socket's guard may answer to any call."""


def json_answer(value: object, status: int = 200) -> Response:
    """An answer of `models`' shapes, encoded as it comes."""
    return Response(json_bytes(value), status, media_type="application/json")


def docs(
    answer: Any, *codes: str, also: dict[int, Any] | None = None, always: Sequence[str] = ALWAYS, good: int = 200
) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a call: its answer, and one problem a status with the codes it may carry."""
    docs: dict[int | str, dict[str, Any]] = {good: {"model": answer, "description": "Done."}}
    for status, model in (also or {}).items():
        docs[status] = {"model": model, "description": HTTPStatus(status).phrase}
    for code in (*codes, *always):
        meaning = CODES[code]
        entry = docs.setdefault(meaning.status, {"model": problem.Problem, "description": ""})
        entry["description"] = f"{entry['description']} `{code}`: {meaning.title}".strip()
    return docs


def text_docs(found: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Return the same for a call that answers Prometheus's text."""
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {**found, 200: {"description": "Prometheus's text format.", "content": content}}


def add_errors(app: FastAPI) -> None:
    """Every error of a call becomes a problem with its code."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = []
        for fault in error.errors():
            where = ".".join(part for part in fault["loc"][1:] if isinstance(part, str)) or "body"
            faults.append(f"{where}: {fault['msg']}")
        return Problem("bad_argument", "; ".join(faults), faults=faults)

    @app.exception_handler(VisitorError)
    async def refused(request: Request, error: VisitorError) -> Response:
        headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
        return Problem(error.code, error.detail, headers=headers)

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: HTTPException) -> Response:
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return Problem("method_not_allowed", headers=error.headers)
        if error.status_code == HTTPStatus.NOT_FOUND:
            return Problem("not_found", "no such call; /openapi.json lists them all")
        if error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return Problem("body_too_large", str(error.detail), headers=error.headers)
        return Problem("bad_argument", str(error.detail))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return Problem("internal", "the daemon met a fault of its own; its log has the reason")


def describe(app: FastAPI) -> None:
    """Let OpenAPI say of problems what they are: `application/problem+json`, a fault in an argument too."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = made()
        problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
        for path in schema["paths"].values():
            for call in path.values():
                for answer in call.get("responses", {}).values():
                    content = answer.get("content", {})
                    of = content.get("application/json", {}).get("schema", {}).get("$ref", "")
                    if of.rpartition("/")[2] in ("Problem", "HTTPValidationError"):
                        answer["content"] = {"application/problem+json": problem}
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        return schema

    app.openapi = openapi  # type: ignore[method-assign]
