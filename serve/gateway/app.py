"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, PlainTextResponse, Response

from client import Result, ToxicityError
from client.policy import Decision, InvalidPolicy, Policy
from client.records import Records, RecordsFailed, decided
from serve.gateway import discovery, errors, messages, perspective
from serve.gateway.backend import Client
from serve.gateway.feedback import Origin, Store, StoreFailed
from serve.gateway.gate import Gate, Keys
from serve.gateway.metrics import Metrics
from serve.gateway.models import Models, milliseconds
from serve.gateway.requests import read
from serve.gateway.rollout import Rollout, limits_of
from serve.gateway.spans import sentences, spans

log = logging.getLogger("tritox.gateway")

PAGE = Path(__file__).parent / "page"
REQUEST_ID = "X-Request-Id"
MAX_TEXTS = 1000
READY_EVERY_S = 5.0
"""The metrics tell whether the model is ready; it is asked so often."""
MAX_SPAN_TEXTS = 8
"""With ``spans``: each text costs many."""
REQUESTS = (
    messages.AnalyzeCommentRequest,
    messages.SuggestCommentScoreRequest,
    messages.PredictRequest,
    messages.SwitchRequest,
    messages.RolloutRequest,
)
FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": messages.ErrorResponse, "description": text}
    for code, text in {
        400: "what is wrong with the request",
        403: "no key, or one without the right",
        404: "no such model or policy",
        409: "the model cannot be switched to",
        413: "the body is too long",
        415: "the body is not said to be JSON",
        429: "the key's rate is used up",
        503: "the model cannot answer now: try again after Retry-After",
    }.items()
}


@dataclass
class Settings:
    """What the gateway is told at its start.

    :param triton: ``host:port`` of Triton's gRPC port, or of a load balancer.
    :param control: of each replica, see :class:`serve.gateway.control.Control`; by default ``triton``.
    :param timeout: seconds that a request may take there.
    :param cors: origins whose pages may call; ``*`` for all. :param max_bytes: of a body.
    :param max_under_way: requests at a time, more are refused.
    :param feedback: where suggested scores go; without, ``suggestscore`` is refused.
    :param records: where each decision is written, before it is answered; by default nowhere.
    :param public_url: the gateway's address as its callers see it; by default as they ask for it.
    """

    triton: str = "127.0.0.1:8001"
    model: str = "toxicity"
    timeout: float = 5.0
    keys: Keys = field(default_factory=Keys)
    cors: Sequence[str] = ()
    max_bytes: int = 2 * 1024 * 1024
    rules: perspective.Rules = field(default_factory=perspective.Rules)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    feedback: Store | None = None
    max_under_way: int = 1000
    records: Records | None = None
    public_url: str | None = None
    control: str | None = None
    control_key: str | None = None


def create(settings: Settings) -> FastAPI:
    """The application. It asks the model every few seconds whether it is ready."""
    models = Models(
        settings.triton, settings.model, settings.timeout, control=settings.control, control_key=settings.control_key
    )
    metrics = Metrics()
    rollout = Rollout(models, settings.rules.languages[0])

    async def look() -> None:
        while True:
            metrics.ready = {models.active: await models.ready()}
            await asyncio.sleep(READY_EVERY_S)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(look())
        yield
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking
        await rollout.close()
        await models.close()

    app = FastAPI(
        title="Tritox gateway",
        description="Perspective API on models of your own, and a plain API beside it.",
        version="0.1.0",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.add_middleware(
        CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
    )
    app.add_middleware(
        Gate,
        keys=settings.keys,
        metrics=metrics,
        max_bytes=settings.max_bytes,
        max_under_way=settings.max_under_way,
    )
    app.openapi = lambda: openapi(app)

    @app.exception_handler(errors.ApiError)
    async def refused(request: Request, error: errors.ApiError) -> Response:
        return error.response()

    @app.exception_handler(ToxicityError)
    async def failed(request: Request, error: ToxicityError) -> Response:
        if isinstance(error, InvalidPolicy):  # which holds labels alone
            return errors.invalid(str(error)).response()
        log.warning("%s: no answer of the model", type(error).__name__)
        return errors.from_client(error).response()

    @app.exception_handler(StoreFailed)
    async def not_stored(request: Request, error: StoreFailed) -> Response:
        log.error("%s", error)
        return errors.unavailable("The suggestion could not be stored.").response()

    @app.exception_handler(RecordsFailed)
    async def not_recorded(request: Request, error: RecordsFailed) -> Response:
        log.error("%s", error)
        return errors.unavailable("The decision could not be recorded.").response()

    async def record(
        client: Client,
        request_id: str,
        texts: Sequence[str],
        results: Sequence[Result],
        policy: Policy | None = None,
        decisions: Sequence[Decision] = (),
    ) -> None:
        """Write what was decided, where that is asked for; no answer goes out before it is on disk.

        :raises RecordsFailed: when it cannot be.
        """
        records = settings.records
        if records is None:
            return
        rows = []
        for place, (text, result) in enumerate(zip(texts, results, strict=True)):
            info = client.known(result.model_version) or await client.info()
            decision = decisions[place] if decisions else None
            hashed = records.hash(text)
            rows.append(decided(hashed, text, replace(result, request_id=request_id), info, policy, decision))
        await asyncio.wrap_future(records.start(rows))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        status = {404: "NOT_FOUND"}.get(error.status_code, "INVALID_ARGUMENT")
        return errors.ApiError(error.status_code, status, f"{error.detail}.", headers=error.headers).response()

    # --- Perspective API

    @app.post(
        "/v1alpha1/comments:analyze",
        response_model=None,
        responses={200: {"model": messages.AnalyzeCommentResponse}, **failures(400, 403, 413, 429, 503)},
        openapi_extra=body_of(messages.AnalyzeCommentRequest),
        tags=["Perspective API"],
    )
    async def analyze(request: Request) -> Response:
        """Scores of a text for the requested attributes."""
        asked = await read(request, messages.AnalyzeCommentRequest)
        request_id = id_of(request)

        async def work(client: Client) -> tuple[dict[str, Any], list[Result]]:
            analysis = perspective.check(asked, await client.info(), settings.rules)
            result = await client.score(analysis.text)
            metrics.texts += 1
            metrics.scored(result.model, result.model_version, result.scores)
            found = None
            if asked.span_annotations and analysis.labels:
                found = await sentences(client, analysis.text, list(dict.fromkeys(analysis.labels.values())), result)
            await record(client, request_id, [analysis.text], [result])
            return perspective.reply(asked, analysis, result, found), [result]

        text = asked.comment.text if asked.comment is not None else None
        answer = await rollout.answer([text] if text else [], None, work)
        return Response(errors.dumps(answer), headers={REQUEST_ID: request_id}, media_type="application/json")

    @app.post(
        "/v1alpha1/comments:suggestscore",
        response_model=None,
        responses={200: {"model": messages.SuggestCommentScoreResponse}, **failures(400, 403, 413, 429, 503)},
        openapi_extra=body_of(messages.SuggestCommentScoreRequest),
        tags=["Perspective API"],
    )
    async def suggestscore(request: Request) -> Response:
        """Keep scores that a text should have had, to train on, unless doNotStore says otherwise."""
        asked = await read(request, messages.SuggestCommentScoreRequest)
        async with models.use() as client:
            info = await client.info()
        suggestion = perspective.check_suggestion(asked, info)
        if not asked.do_not_store:
            if settings.feedback is None:
                raise errors.ApiError(400, "FAILED_PRECONDITION", "This gateway keeps no suggestions.")
            await settings.feedback.add(suggestion, Origin(request.scope["key_name"], info.name, info.version))
            metrics.suggestions += 1
        answer = {} if asked.client_token is None else {"clientToken": asked.client_token}
        return Response(errors.dumps(answer), media_type="application/json")

    @app.get("/$discovery/rest", tags=["Perspective API"], responses=failures(400))
    async def discover(request: Request, version: str = "v1alpha1") -> dict[str, Any]:
        """The discovery document, for Google's client libraries."""
        if version != "v1alpha1":
            raise errors.ApiError(404, "NOT_FOUND", "Discovery document not found: the version is v1alpha1.")
        return discovery.document(settings.public_url or str(request.base_url))

    # --- the plain API

    @app.post(
        "/predict",
        response_model=None,
        responses={200: {"model": messages.PredictResponse}, **failures(400, 403, 404, 413, 415, 429, 503)},
        openapi_extra=body_of(messages.PredictRequest),
        tags=["plain API"],
    )
    async def predict(request: Request) -> Response:
        """Scores of one text, or of many, by the model's own labels."""
        start = time.perf_counter()
        request_id = id_of(request)
        must_be_json(request)
        asked = await read(request, messages.PredictRequest)
        if (asked.text is None) == (asked.texts is None):
            raise errors.invalid("Give either text or texts.")
        texts = [asked.text] if asked.text is not None else asked.texts or []
        most = MAX_SPAN_TEXTS if asked.spans else MAX_TEXTS
        if len(texts) > most:
            raise errors.invalid(f"{len(texts)} texts are too many: at most {most} a request.")
        policy = settings.policies.get(asked.policy) if asked.policy is not None else None
        if asked.policy is not None and policy is None:
            raise errors.ApiError(404, "NOT_FOUND", f"There is no policy {asked.policy[:100]!r}: see GET /policies.")

        async def work(client: Client) -> tuple[list[dict[str, Any]], list[Result]]:
            predictions, decisions = [], []
            results = [await client.score(texts[0])] if len(texts) == 1 else await client.classify(texts)
            metrics.texts += len(texts)
            for text, result in zip(texts, results, strict=True):
                metrics.scored(result.model, result.model_version, result.scores)
                prediction = plain(result)
                if policy is not None:
                    decisions.append(policy.decide(result))
                    prediction["decision"] = decisions[-1].to_dict()
                if asked.spans:
                    units = perspective.utf16(text)
                    prediction["spans"] = [
                        {"begin": units(begin), "end": units(end), "scores": {k: round(v, 6) for k, v in each.items()}}
                        for begin, end, each in await spans(client, text, max_tokens=(await client.info()).max_tokens)
                    ]
                predictions.append(prediction)
            await record(client, request_id, texts, results, policy, decisions)
            return predictions, results

        predictions = await rollout.answer(texts, asked.model, work)
        answer = {"results": predictions, "took_ms": milliseconds(start)}
        return Response(errors.dumps(answer), headers={REQUEST_ID: request_id}, media_type="application/json")

    @app.get("/models", tags=["plain API"], responses=failures(403, 429, 503))
    async def list_models() -> messages.ModelsResponse:
        """The models of the server, and which one answers."""
        return messages.ModelsResponse(active=models.active, models=await models.listing())

    @app.post(
        "/models/switch",
        responses=failures(400, 403, 404, 409, 413, 415, 429, 503),
        openapi_extra=body_of(messages.SwitchRequest),
        tags=["plain API"],
    )
    async def switch(request: Request) -> messages.SwitchResponse:
        """Let another model answer; it is loaded first where it is not. No request fails meanwhile."""
        start = time.perf_counter()
        must_be_json(request)
        asked = await read(request, messages.SwitchRequest)
        try:
            info, previous = await models.switch(asked.model, asked.unload, asked.reload)
        except Exception:
            metrics.failed_switches += 1
            raise
        metrics.switches += 1
        return messages.SwitchResponse(
            active=info.name, version=info.version, previous=previous, took_ms=milliseconds(start)
        )

    @app.get("/rollout", tags=["plain API"], responses=failures(403, 429))
    async def show_rollout() -> dict[str, Any]:
        """The candidate, and what it did so far."""
        return rollout.status()

    @app.post(
        "/rollout",
        responses=failures(400, 403, 404, 409, 413, 415, 429, 503),
        openapi_extra=body_of(messages.RolloutRequest),
        tags=["plain API"],
    )
    async def set_rollout(request: Request) -> dict[str, Any]:
        """Give a candidate a share of the requests, or let it go: `python -m serve.rollout` does."""
        must_be_json(request)
        asked = await read(request, messages.RolloutRequest)
        if asked.candidate is None:
            rollout.stop("it was taken back")
        else:
            await rollout.start(asked.candidate, asked.share, asked.shadow, limits_of(asked.model_dump()))
        return rollout.status()

    @app.get("/policies", tags=["plain API"], responses=failures(403, 429))
    async def list_policies() -> messages.PoliciesResponse:
        """The policies that /predict decides by."""
        return messages.PoliciesResponse(
            policies={
                name: {
                    "description": each.description,
                    "rules": [{rule.action: dict(rule.thresholds)} for rule in each.rules],
                }
                for name, each in settings.policies.items()
            }
        )

    # --- for those who run it

    @app.get("/healthz", tags=["operation"], response_class=PlainTextResponse)
    async def healthz() -> str:
        """The gateway runs."""
        return "ok\n"

    @app.get("/readyz", tags=["operation"], response_class=PlainTextResponse, responses=failures(503))
    async def readyz() -> str:
        """The active model can answer."""
        if not await models.ready():
            raise errors.unavailable("The model is not ready.")
        return "ready\n"

    @app.get("/metrics", tags=["operation"], response_class=PlainTextResponse)
    async def show_metrics() -> Response:
        """For Prometheus."""
        return Response(metrics.render() + rollout.render(), media_type="text/plain; version=0.0.4")

    # one route a file: a folder mounted at / would answer for every path and method that is not there
    for file in sorted(PAGE.iterdir()):
        app.add_route("/" if file.name == "index.html" else f"/{file.name}", file_of(file), include_in_schema=False)
    return app


def id_of(request: Request) -> str:
    """What the caller calls the request, where that is a plain name; else a new one."""
    given = request.headers.get(REQUEST_ID, "")
    return given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex


def file_of(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return FileResponse(path)

    return answer


def plain(result: Result) -> dict[str, Any]:
    found = result.to_dict()
    return {key: found[key] for key in ("scores", "flagged", "truncated", "model", "model_version")}


def must_be_json(request: Request) -> None:
    """A web page of another origin may post without asking first, but not as JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise errors.ApiError(415, "INVALID_ARGUMENT", "Send the body with Content-Type: application/json.")


def failures(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: FAILURES[code] for code in codes}


def body_of(message: type) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{message.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def openapi(app: FastAPI) -> dict[str, Any]:
    """The description of the API; bodies are read by us and not by FastAPI, so their schemas are added here."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, definitions = models_json_schema(
            [(model, "validation") for model in REQUESTS], by_alias=True, ref_template="#/components/schemas/{model}"
        )
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for name, definition in definitions["$defs"].items():
            schemas.setdefault(name, definition)
        app.openapi_schema = schema
    described: dict[str, Any] = app.openapi_schema
    return described
