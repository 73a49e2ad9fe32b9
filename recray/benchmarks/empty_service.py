"""A deployment that does nothing, with which recray's is compared."""

# Ray is imported here for it alone.


def serve_empty() -> None:
    """Deploy it beside what is served; it answers at /empty/."""
    from fastapi import FastAPI
    from ray import serve

    app = FastAPI()

    @app.get("/")
    async def nothing() -> dict[str, str]:
        return {}

    deployment = serve.deployment(
        name="empty", max_ongoing_requests=128, ray_actor_options={"num_cpus": 0.25}
    )
    serve.run(
        deployment(serve.ingress(app)(type("Empty", (), {}))).bind(),
        name="empty",
        route_prefix="/empty",
    )
