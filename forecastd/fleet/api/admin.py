"""`POST /admin/reload-model`: another model, while the fleet goes on."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from forecastd.daemon.guarded import Unforeseen, guarded
from forecastd.errors import ForecastdError
from forecastd.fleet.api.parts import JSON, Parts, errors, json_answer
from forecastd.fleet.api.refusals import Refused
from forecastd.fleet.api.schemas import Reloaded, ReloadModel
from forecastd.fleet.modelling import Busy, Change, Unfit
from forecastd.fleet.service import Fleet

BODY: dict[str, Any] = {
    "requestBody": {"required": True, "content": {JSON: {"schema": {"$ref": "#/components/schemas/ReloadModel"}}}}
}


def router(parts: Parts) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["admin"])

    @routes.post("/admin/reload-model", response_model=Reloaded, responses=errors(409, 413, 422), openapi_extra=BODY)
    async def reload_model(request: Request) -> Response:
        """Run the bundle of this name from now on. It is proven first; the old one goes on when it is no good."""
        async with parts.bodies.read(request) as body:
            try:
                name = ReloadModel.model_validate_json(body).name
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                where = ".".join(str(part) for part in first["loc"][:2]) or "The body"
                raise Refused(422, f"{where}: {first['msg']}.", 'Send {"name": "the bundle\'s directory"}.') from None
        changed = await _changed(parts.fleet, name)
        if isinstance(changed, Change):
            return json_answer(changed.as_json())
        if isinstance(changed, Busy):
            raise Refused(409, str(changed), "Ask again when it is done; /status names the model in use.")
        told = str(changed) if isinstance(changed, Unfit) else "The model could not be loaded; the log tells why."
        raise Refused(422, told, "The old model goes on.")

    return routes


async def _changed(fleet: Fleet, name: str) -> Change | ForecastdError | Unforeseen:
    """The change, made in a thread of its own: it takes as long as a model takes to load, and must not hold up the end."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Change | ForecastdError | Unforeseen] = loop.create_future()

    def attempt() -> Change | ForecastdError:
        try:
            return fleet.reload(name)
        except ForecastdError as error:
            return error

    def tell(result: Change | ForecastdError | Unforeseen) -> None:
        if not done.done():
            done.set_result(result)

    def run() -> None:
        result = guarded("the change of the model", attempt)
        if not loop.is_closed():
            loop.call_soon_threadsafe(partial(tell, result))

    threading.Thread(target=run, name="reload", daemon=True).start()
    return await done
