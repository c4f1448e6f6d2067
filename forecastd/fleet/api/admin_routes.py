"""`POST /admin/reload-model`: another model, while the fleet goes on."""

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

BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": "#/components/schemas/ReloadModel"}}}}
}


def router(parts: ApiContext) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["admin"])

    @routes.post(
        "/admin/reload-model",
        response_model=ReloadResponse,
        responses=error_responses(409, 413, 422),
        openapi_extra=BODY,
    )
    async def reload_model(request: Request) -> Response:
        """Run the bundle of this name from now on. It is proven first; the old one goes on when it is no good."""
        async with parts.bodies.read(request) as body:
            try:
                name = ReloadRequest.model_validate_json(body).name
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                location = ".".join(str(part) for part in first["loc"][:2]) or "The body"
                raise RequestRefused(
                    422, f"{location}: {first['msg']}.", 'Send {"name": "the bundle\'s directory"}.'
                ) from None
        outcome = await _reload_in_thread(parts.fleet, name)
        if isinstance(outcome, ModelChange):
            return json_response(outcome.as_json())
        if isinstance(outcome, ReloadInProgress):
            raise RequestRefused(409, str(outcome), "Ask again when it is done; /status names the model in use.")
        message = (
            str(outcome)
            if isinstance(outcome, IncompatibleModel)
            else "The model could not be loaded; the log tells why."
        )
        raise RequestRefused(422, message, "The old model goes on.")

    return routes


async def _reload_in_thread(fleet: Fleet, name: str) -> ModelChange | ForecastdError | UnexpectedError:
    """The change, made in a thread of its own: it takes as long as a model takes to load, and must not hold up the end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ModelChange | ForecastdError | UnexpectedError] = loop.create_future()

    def attempt() -> ModelChange | ForecastdError:
        try:
            return fleet.reload(name)
        except ForecastdError as error:
            return error

    def tell(result: ModelChange | ForecastdError | UnexpectedError) -> None:
        if not done.done():
            done.set_result(result)

    def run() -> None:
        result = run_guarded("the change of the model", attempt)
        if not loop.is_closed():
            loop.call_soon_threadsafe(partial(tell, result))

    threading.Thread(target=run, name="reload", daemon=True).start()
    return await done
