"""The app of a Serve config, with an address that meets a bug."""

from collections.abc import Callable
from unittest import mock

from recray.serving import deployment
from recray.serving.options import AppArgs


def app_builder(args: AppArgs):
    """As deployment.app_builder; GET /v1/bug divides by 0."""
    plain = deployment._builder

    def with_bug(*given) -> Callable:
        build = plain(*given)

        def build_with_bug():
            app = build()

            @app.get("/v1/bug")
            def bug():
                return 1 / 0

            return app

        return build_with_bug

    with mock.patch.object(deployment, "_builder", with_bug):
        return deployment.app_builder(args)
