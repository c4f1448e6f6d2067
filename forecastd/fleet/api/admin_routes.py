"""`POST /admin/reload-model`: change the model while the fleet is running."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from forecastd.errors import ForecastdError
from forecastd.fleet.api.context import JSON, ApiContext, json_response
from forecastd.fleet.api.errors import RequestRefused, error_responses
from forecastd.fleet.documents import ReloadRequest, ReloadResponse, adapter
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.forecast.model_manager import IncompatibleModel, ReloadInProgress
from forecastd.runtime.unexpected import UnexpectedError, run_guarded

REQUEST_BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": "#/components/schemas/ReloadRequest"}}}}
}


def router(context: ApiContext) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["admin"])

    @routes.post(
        "/admin/reload-model",
        response_model=ReloadResponse,
        responses=error_responses(409, 413, 422),
        openapi_extra=REQUEST_BODY,
    )
    async def reload_model(request: Request) -> Response:
        """Switch to the bundle of this name. It is checked first; if the check fails, the current model stays."""
        async with context.bodies.read(request) as body:
            try:
                name = adapter(ReloadRequest).validate_json(body).name
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                location = ".".join(str(part) for part in first["loc"][:2]) or "The body"
                raise RequestRefused(
                    422, f"{location}: {first['msg']}.", 'Send {"name": "the bundle\'s directory"}.'
                ) from None
        outcome = await _reload_in_thread(context.fleet, name)
        if isinstance(outcome, ReloadResponse):
            return json_response(outcome)
        if isinstance(outcome, ReloadInProgress):
            raise RequestRefused(409, str(outcome), "Retry when it is finished; /status shows the model in use.")
        failed = "The model could not be loaded; see the log."
        message = str(outcome) if isinstance(outcome, IncompatibleModel) else failed
        raise RequestRefused(422, message, "Correct it and retry; the current model stays in use.")

    return routes


async def _reload_in_thread(fleet: Fleet, name: str) -> ReloadResponse | ForecastdError | UnexpectedError:
    """Reload in a daemon thread: it takes as long as the model needs to load, and must not delay a shutdown."""
    result: Future[ReloadResponse | ForecastdError | UnexpectedError] = Future()
    result.set_running_or_notify_cancel()  # a request that is cancelled does not cancel the reload

    def attempt() -> ReloadResponse | ForecastdError:
        try:
            return fleet.reload(name)
        except ForecastdError as error:
            return error

    def run() -> None:
        result.set_result(run_guarded("the model reload", attempt))

    threading.Thread(target=run, name="reload", daemon=True).start()
    return await asyncio.wrap_future(result)
