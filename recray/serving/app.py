"""The HTTP app: its routes, its middleware, and the one form of all errors.

It knows FastAPI and a Recommender, and nothing of Ray. Ids are those of the data set, in requests
and in replies. Every error is {"error": {"code", "message"}}.

More routes: write a function in routes.py, or an APIRouter in a file of its own that is added to
ROUTERS below; take the service by `service_of(request)`, and the model by `service.model()` once a
request.
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from recray import __version__
from recray.errors import RecrayError
from recray.inference.recommender import Recommender
from recray.inference.user_store import RETRY_SECONDS
from recray.serving import routes, user_routes
from recray.serving.ab_test import ABTest
from recray.serving.checked_query import CheckedQueries, CheckedQueryMiddleware
from recray.serving.feedback_service import FeedbackService
from recray.serving.guard import SecurityMiddleware, ServiceMetrics
from recray.serving.hot_swap import ModelHolder
from recray.serving.links import add_links
from recray.serving.log import log
from recray.serving.methods import HeadMiddleware, allowed_methods
from recray.serving.options import ServiceLimits
from recray.serving.rating_rules import RatingRules
from recray.serving.service import UNREADABLE, Service, error_of, error_response
from recray.serving.slashes import SlashMiddleware
from recray.serving.work import Workers

ROUTERS = (user_routes.router, routes.items_router, routes.router)
"""Of two routes that fit an address the first one answers. Ids may hold slashes, so a route that
ends in {user:path} comes after the longer ones that begin with it.
"""

KEY_HEADERS = ["authorization", "content-type", "x-api-key"]
"""Request headers that a page of another origin may send: its key, and the type of its body."""


def build_app(
    model: Recommender | ModelHolder,
    limits: ServiceLimits | None = None,
    metrics: ServiceMetrics | None = None,
    ab_test: ABTest | None = None,
    feedback: FeedbackService | None = None,
) -> FastAPI:
    """Build the app that answers for one model at a time.

    Args:
        model: The opened model, or a holder whose model may be replaced.
        limits: Keys and limits; by default the default limits without any key.
        metrics: Counts requests and lists.
        ab_test: The challenger, and which users get it; None if there is one model.
        feedback: Keeps ratings; None if the service takes none.
    """
    limits, metrics = limits or ServiceLimits(), metrics or ServiceMetrics()
    app = FastAPI(
        title="recray",
        version=__version__,
        description="Recommendations from a model trained on Ray. Ids are those of the data set.",
        docs_url=None,  # routes.py has a page of its own
        redoc_url=None,
        redirect_slashes=False,  # it would redirect to whatever the Host header says
        # The counts of guard.py go to Ray's metrics. To look for another receiver at each request
        # takes FastAPI a tenth of the time of a list.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # Not include_router, which adds a second matching of routes to every request.
        routes=[route for router in ROUTERS for route in router.routes],
    )
    holder = model if isinstance(model, ModelHolder) else ModelHolder(model)
    workers = Workers(limits.budget, limits.timeout)
    app.state.service = Service(holder, metrics, ab_test, feedback, workers)
    app.state.rating_rules = RatingRules(limits)
    app.exception_handler(RequestValidationError)(_invalid_request)
    app.exception_handler(RecrayError)(_unanswerable_request)
    app.exception_handler(HTTPException)(_http_error)
    _finish_document(app, limits)
    _add_middleware(app, limits, metrics)
    return app


def _add_middleware(app: FastAPI, limits: ServiceLimits, metrics: ServiceMetrics) -> None:
    """Put layers around the routes; a request meets the one that is added last first."""
    app.add_middleware(HeadMiddleware)
    queries = CheckedQueries(app.state.service)
    app.add_middleware(CheckedQueryMiddleware, queries=queries)
    app.add_middleware(
        SecurityMiddleware, limits=limits, metrics=metrics, answer_at_once=queries.answer_at_once
    )
    app.add_middleware(SlashMiddleware)
    if limits.cors:
        _let_in(app, limits.cors)


def _let_in(app: FastAPI, origins: tuple[str, ...]) -> None:
    """Let pages of these origins ask."""
    methods = ["GET", "POST", "DELETE"]
    app.add_middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=KEY_HEADERS
    )


async def _invalid_request(_request: Request, error: RequestValidationError) -> Response:
    problems = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()[:3]]
    return error_response(422, "invalid", "; ".join(problems))


async def _unanswerable_request(request: Request, error: RecrayError) -> Response:
    code, message = error_of(error)
    if code != UNREADABLE:
        return error_response(422, code, message)
    log(event="users_unreadable", path=request.scope["path"], reason=str(error))
    reply = error_response(503, code, message)
    reply.headers["retry-after"] = str(int(RETRY_SECONDS))
    return reply


async def _http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        allow = {"allow": ", ".join(allowed_methods(request.app.routes, request.scope["path"]))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        error.headers = allow
    codes = {400: "invalid", 404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "http_error")
    reply = error_response(error.status_code, code, str(error.detail))
    reply.headers.update(error.headers or {})
    return reply


def _finish_document(app: FastAPI, limits: ServiceLimits) -> None:
    """Say in the OpenAPI document what each operation gives, what follows it, and of the keys."""
    schema = app.openapi()  # FastAPI makes it once and keeps it
    for operations in schema["paths"].values():
        for operation in operations.values():  # else the name of the function in its place
            operation["summary"] = operation["description"].partition(".\n")[0].rstrip(".")
    add_links(schema)
    if limits.keys:
        schema.setdefault("components", {})["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        schema["security"] = [{"key": []}, {"header": []}]
        for path in ("/healthz", "/readyz"):
            schema["paths"][path]["get"]["security"] = []
