"""`POST /admin/reload-model`: change the model while the fleet is running."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from forecastd.errors import ForecastdError
from forecastd.fleet.api.errors import RequestRefused
from forecastd.fleet.api.responses import JSON, ApiContext, error_responses, json_response
from forecastd.fleet.api.schemas import ReloadRequest, ReloadResponse
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.forecast.model_manager import IncompatibleModel, ModelChange, ReloadInProgress
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
                name = ReloadRequest.model_validate_json(body).name
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                location = ".".join(str(part) for part in first["loc"][:2]) or "The body"
                raise RequestRefused(
                    422, f"{location}: {first['msg']}.", 'Send {"name": "the bundle\'s directory"}.'
                ) from None
        outcome = await _reload_in_thread(context.fleet, name)
        if isinstance(outcome, ModelChange):
            return json_response(outcome.as_json())
        if isinstance(outcome, ReloadInProgress):
            raise RequestRefused(409, str(outcome), "Retry when it is finished; /status shows the model in use.")
        failed = "The model could not be loaded; see the log."
        message = str(outcome) if isinstance(outcome, IncompatibleModel) else failed
        raise RequestRefused(422, message, "Correct it and retry; the current model stays in use.")

    return routes


async def _reload_in_thread(fleet: Fleet, name: str) -> ModelChange | ForecastdError | UnexpectedError:
    """Reload in a daemon thread: it takes as long as the model needs to load, and must not delay a shutdown."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ModelChange | ForecastdError | UnexpectedError] = loop.create_future()

    def attempt() -> ModelChange | ForecastdError:
        try:
            return fleet.reload(name)
        except ForecastdError as error:
            return error

    def finish(result: ModelChange | ForecastdError | UnexpectedError) -> None:
        if not done.done():
            done.set_result(result)

    def run() -> None:
        result = run_guarded("the model reload", attempt)
        if not loop.is_closed():
            loop.call_soon_threadsafe(partial(finish, result))

    threading.Thread(target=run, name="reload", daemon=True).start()
    return await done
