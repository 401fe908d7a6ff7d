"""The discovery document, from which Google's client libraries learn what they can call and where."""

from __future__ import annotations

from typing import Any

from serve.gateway.messages import (
    AnalyzeCommentRequest,
    AnalyzeCommentResponse,
    Message,
    SuggestCommentScoreRequest,
    SuggestCommentScoreResponse,
)

_PARAMETERS = {
    "$.xgafv": ("string", "V1 error format."),
    "access_token": ("string", "OAuth access token; not looked at."),
    "alt": ("string", "Data format of the response: json."),
    "callback": ("string", "JSONP; not supported."),
    "fields": ("string", "Selector of a partial response; everything is returned."),
    "key": ("string", "API key."),
    "oauth_token": ("string", "OAuth 2.0 token; not looked at."),
    "prettyPrint": ("boolean", "Indentation; not supported."),
    "quotaUser": ("string", "Not looked at."),
    "uploadType": ("string", "Not supported."),
    "upload_protocol": ("string", "Not supported."),
}


def document(root: str) -> dict[str, Any]:
    """:param root: the gateway's address as the caller sees it, with a slash at the end."""
    methods = {
        "analyze": ("Scores a text.", AnalyzeCommentRequest, AnalyzeCommentResponse),
        "suggestscore": ("Suggests scores of a text.", SuggestCommentScoreRequest, SuggestCommentScoreResponse),
    }
    schemas: dict[str, Any] = {}
    for _, request, response in methods.values():
        for message in (request, response):
            schemas |= _schemas(message)
    return {
        "kind": "discovery#restDescription",
        "discoveryVersion": "v1",
        "id": "commentanalyzer:v1alpha1",
        "name": "commentanalyzer",
        "version": "v1alpha1",
        "title": "Perspective Comment Analyzer API, as Tritox answers it",
        "description": "Scores of a comment's toxicity, from a model of one's own.",
        "protocol": "rest",
        "rootUrl": root,
        "baseUrl": root,
        "basePath": "",
        "servicePath": "",
        "batchPath": "batch",
        "parameters": {
            name: {"type": kind, "location": "query", "description": text} for name, (kind, text) in _PARAMETERS.items()
        },
        "auth": {"oauth2": {"scopes": {"https://www.googleapis.com/auth/userinfo.email": {"description": "none"}}}},
        "schemas": dict(sorted(schemas.items())),
        "resources": {
            "comments": {
                "methods": {
                    name: {
                        "id": f"commentanalyzer.comments.{name}",
                        "description": text,
                        "httpMethod": "POST",
                        "path": f"v1alpha1/comments:{name}",
                        "flatPath": f"v1alpha1/comments:{name}",
                        "parameters": {},
                        "parameterOrder": [],
                        "request": {"$ref": request.__name__},
                        "response": {"$ref": response.__name__},
                    }
                    for name, (text, request, response) in methods.items()
                }
            }
        },
    }


def _schemas(message: type[Message]) -> dict[str, Any]:
    """A message and all that it holds, in Google's dialect of JSON schema: no null, and references by bare names."""
    schema = message.model_json_schema(by_alias=True, ref_template="{model}")
    parts = {**schema.pop("$defs", {}), message.__name__: schema}
    return {
        name: {
            "id": name,
            "type": "object",
            "properties": {key: _plain(value) for key, value in part["properties"].items()},
        }
        for name, part in parts.items()
    }


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return _plain(next(each for each in schema["anyOf"] if each.get("type") != "null"))
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    plain: dict[str, Any] = {key: schema[key] for key in ("type", "enum") if key in schema}
    if plain["type"] == "integer":
        plain["format"] = "int32"
    if plain["type"] == "number":
        plain["format"] = "float"
    if "items" in schema:
        plain["items"] = _plain(schema["items"])
    if "additionalProperties" in schema and plain["type"] == "object":
        plain["additionalProperties"] = _plain(schema["additionalProperties"])
    return plain
