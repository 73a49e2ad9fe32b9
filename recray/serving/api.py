"""The HTTP interface: routes and bodies. Knows FastAPI and a Recommender, and nothing of Ray.

Raw MovieLens ids in and out, titles beside them. Every error is {"error": {"code", "message"}}.
"""

from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from recray import __version__
from recray.data.ids import ID_LENGTH, ID_LIMIT
from recray.errors import RecrayError
from recray.recommender import Recommender

MAX_K = 500
MAX_RATINGS = 1000


ItemId = Annotated[
    Annotated[int, Field(strict=True, ge=0, lt=ID_LIMIT)]
    | Annotated[str, Field(strict=True, min_length=1, max_length=ID_LENGTH)],
    Field(description="Raw item id, as the data has it: a number or a text."),
]


class Rating(BaseModel):
    """One rating of somebody's."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"item": 1, "rating": 5}}
    )
    item: ItemId
    rating: Annotated[float, Field(allow_inf_nan=False, description="Stars, on the data's scale.")]


class Wish(BaseModel):
    """Who asks, by ratings, and how much is wanted."""

    model_config = ConfigDict(extra="forbid")
    ratings: Annotated[list[Rating], Field(max_length=MAX_RATINGS)] = Field(
        default_factory=list, description="Of somebody not in training; none gives popular items."
    )
    k: Annotated[int, Field(ge=1, le=MAX_K, description="Length of the list.")] = 10
    exclude_seen: Annotated[bool, Field(description="Leave out the rated items.")] = True


class Item(BaseModel):
    """One recommended item."""

    item: ItemId
    title: str
    year: int | None
    genres: list[str]
    score: Annotated[float, Field(description="Stars, or a logit that only orders; see /v1/model.")]


class Answer(BaseModel):
    """A recommended list, best first."""

    items: list[Item]
    source: Annotated[str, Field(description="model, fold_in or popular.")]
    model_version: str


class Problem(BaseModel):
    """What went wrong, and what is allowed."""

    code: str
    message: str


class Failure(BaseModel):
    """Every error's body."""

    error: Problem


def build_app(recommender: Recommender) -> FastAPI:
    """The app that answers for one bundle.

    Args:
        recommender: Opened before; requests never wait for a file.
    """
    app = FastAPI(
        title="recray",
        version=__version__,
        description="Recommendations from a model trained on Ray. Ids are those of the data set.",
    )
    _errors(app)
    _recommendations(app, recommender)
    _about(app, recommender)
    return app


def _failure(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def _errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()[:3]]
        return _failure(422, "invalid", "; ".join(problems))

    @app.exception_handler(RecrayError)
    async def refused(_request: Request, error: RecrayError) -> JSONResponse:
        return _failure(422, "invalid", str(error))

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "http_error")
        return _failure(error.status_code, code, str(error.detail))

    @app.exception_handler(Exception)
    async def bug(_request: Request, _error: Exception) -> JSONResponse:
        return _failure(500, "internal", "an internal error; the log of the replica has the trace")


_FAILURES: dict[int | str, dict[str, Any]] = {
    404: {"model": Failure, "description": "The data set has no such user."},
    422: {"model": Failure, "description": "A parameter is out of range."},
}


def _recommendations(app: FastAPI, recommender: Recommender) -> None:
    @app.get(
        "/v1/users/{user:path}/recommendations",
        response_model=Answer,
        responses=_FAILURES,
        tags=["recommend"],
    )
    async def for_user(
        user: Annotated[
            str, Path(max_length=ID_LENGTH, description="Raw user id.", examples=["1"])
        ],
        k: Annotated[int, Query(ge=1, le=MAX_K, description="Length of the list.")] = 10,
        exclude_seen: Annotated[bool, Query(description="Leave out rated items.")] = True,
    ) -> JSONResponse:
        """The best items for a user of the data set."""
        try:
            answer = recommender.recommend(recommender.users.parse(user), k, exclude_seen)
        except KeyError:
            return _failure(
                404,
                "unknown_user",
                f"no user {user!r} in {recommender.bundle.config['dataset']}; "
                "POST /v1/recommendations answers for somebody new",
            )
        return JSONResponse(answer.plain())

    @app.post(
        "/v1/recommendations",
        response_model=Answer,
        responses={422: _FAILURES[422]},
        tags=["recommend"],
    )
    async def for_ratings(wish: Wish) -> JSONResponse:
        """The best items for somebody who was not in training."""
        ratings = [(rating.item, rating.rating) for rating in wish.ratings]
        answer = recommender.recommend_from(ratings, wish.k, wish.exclude_seen)
        return JSONResponse(answer.plain())


def _about(app: FastAPI, recommender: Recommender) -> None:
    bundle = recommender.bundle
    facts = {
        "model_version": recommender.version,
        "preset": bundle.settings.preset,
        "model": bundle.settings.model.kind,
        "scores": bundle.model.returns,
        "dataset": bundle.config["dataset"],
        "users": bundle.config["users"],
        "items": bundle.config["items"],
        "rating_range": bundle.config["rating_range"],
        "metrics": bundle.metrics.get("metrics", {}),
        "baselines": bundle.metrics.get("baselines", {}),
        "verdict": bundle.metrics.get("verdict"),
        "settings": bundle.settings.plain(),
    }

    @app.get("/v1/model", tags=["about"])
    async def model() -> dict[str, Any]:
        """What answers: version, preset, data set, and its measured metrics with intervals."""
        return facts

    @app.get("/healthz", tags=["about"])
    async def alive() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["about"])
    async def ready() -> dict[str, str]:
        """A model is loaded and checked; its version."""
        return {"status": "ready", "model_version": recommender.version}
