"""The service itself: its models, its health, and its two pages."""

import functools
from importlib import resources

import jinja2
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from recray.inference.recommender import Recommender
from recray.schema import SCORE_NAMES
from recray.serving.schemas import responses
from recray.serving.service import NoQuery, Service, error_responses, json_response, service_of

EXAMPLE_USERS = 4
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
DOCS_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
)
PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
}

router = APIRouter()


@router.get(
    "/v1/model", response_model=responses.ModelInfo, responses=error_responses(), tags=["about"]
)
async def model(request: Request, _query: NoQuery) -> Response:
    """What answers: version, preset, data set, and its measured metrics with intervals."""
    service = service_of(request)
    return json_response(_info(service, service.model()))


@router.get(
    "/v1/models", response_model=responses.LoadedModels, responses=error_responses(), tags=["about"]
)
async def models(request: Request, _query: NoQuery) -> Response:
    """Every model that is loaded; the one that answers unless told otherwise comes first."""
    service = service_of(request)
    infos = [_info(service, recommender) for recommender in service.loaded()]
    return json_response(responses.LoadedModels(models=infos))


def _info(service: Service, recommender: Recommender) -> responses.ModelInfo:
    bundle, years = recommender.bundle, recommender.catalog.year_span
    return responses.ModelInfo(
        model_version=recommender.version,
        created=bundle.created,
        preset=bundle.settings.preset,
        model=bundle.settings.model.kind,
        scores=SCORE_NAMES[bundle.model.score_type],
        dataset=bundle.config["dataset"],
        users=bundle.config["users"],
        items=bundle.config["items"],
        genres=recommender.catalog.genre_names,
        years=None if years is None else list(years),
        example_users=recommender.users.raw[:EXAMPLE_USERS].tolist(),
        keeps_ratings=service.feedback is not None,
        rating_range=bundle.config["rating_range"],
        metrics=bundle.metrics.get("metrics", {}),
        baselines=bundle.metrics.get("baselines", {}),
        verdict=bundle.metrics.get("verdict"),
        settings=bundle.settings.plain(),
    )


@router.get("/healthz", response_model=responses.Status, tags=["about"])
async def alive() -> Response:
    """The process answers."""
    return json_response(responses.Status(status="ok"))


@router.get("/readyz", response_model=responses.Readiness, tags=["about"])
async def ready(request: Request) -> Response:
    """A model is loaded and checked; its version, and that of the model that should answer."""
    return json_response(service_of(request).holder.status())


# FastAPI's own page loads scripts from another server; this one has no script at all.
@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Show the OpenAPI document as a page."""
    page = _docs_template().render(schema=request.app.openapi())
    return HTMLResponse(page, headers={"content-security-policy": DOCS_POLICY})


@router.get("/", include_in_schema=False)
@router.get("/page/page.css", include_in_schema=False)
@router.get("/page/page.js", include_in_schema=False)
async def page(request: Request) -> Response:
    """Serve the page and its two files; the policy lets the browser load nothing else."""
    name, kind = PAGE_FILES[request.scope["route"].path]
    headers = {"content-security-policy": PAGE_POLICY, "referrer-policy": "no-referrer"}
    return Response(_read(name), media_type=f"{kind}; charset=utf-8", headers=headers)


@functools.cache
def _read(name: str) -> bytes:
    return (resources.files("recray") / "serving" / "page" / name).read_bytes()


@functools.cache
def _docs_template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_read("docs.html").decode())
