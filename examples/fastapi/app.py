"""A web service that classifies images: enqueue now, answer later.

POST /images         202, the result's address in Location; the body is an image, or {"url": "https://…"}
GET  /results/{id}   202 not yet | 200 the answer | 404 no such image | 410 forgotten | the image's own error

The handlers never block the event loop and hold no state: any process can answer for any other.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, HttpUrl, ValidationError

from classifleet.producer import (
    AsyncFleet,
    ClassifleetError,
    IdConflict,
    InvalidRequest,
    QueueFull,
    Result,
    ResultExpired,
    ResultTimeout,
    Unavailable,
    UnknownJob,
)

MODELS = ("imagenet", "nsfw")
DEADLINE_SECONDS = 300.0
LONGEST_WAIT_SECONDS = 30.0
RETRY_AFTER_SECONDS = 1.0
BODY = {"content": {"image/*": {}, "application/json": {"example": {"url": "https://example.com/cat.jpg"}}}}

# Errors of a call. (An image that cannot be classified is no error of the call: it is a result.)
STATUS = {
    IdConflict: 409,
    InvalidRequest: 422,
    QueueFull: 503,
    ResultExpired: 410,
    Unavailable: 503,
    UnknownJob: 404,
}


class ImageUrl(BaseModel):
    """Only the public web: what else the fleet may read is not for strangers to name."""

    url: HttpUrl


class Accepted(BaseModel):
    id: str
    result: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One connection to the fleet for the life of the process; the broker is in CLASSIFLEET_BROKER_URL."""
    async with AsyncFleet() as fleet:
        app.state.fleet = fleet
        yield


app = FastAPI(title="What is in this picture?", lifespan=lifespan)


def get_fleet(request: Request) -> AsyncFleet:
    fleet: AsyncFleet = request.app.state.fleet
    return fleet


FleetOfApp = Annotated[AsyncFleet, Depends(get_fleet)]


@app.post(
    "/images", status_code=202, openapi_extra={"requestBody": {"content": {"image/*": {}, "application/json": {}}}}
)
async def enqueue(
    request: Request, response: Response, fleet: FleetOfApp, idempotency_key: Annotated[str | None, Header()] = None
) -> Accepted:
    """Enqueue an image. A repetition with the same Idempotency-Key is the same image, so retrying a 503 is safe."""
    ref = await _reference(request, fleet.settings.max_bytes)
    handle = await fleet.submit(ref, models=MODELS, id=idempotency_key, deadline=DEADLINE_SECONDS)
    where = app.url_path_for("result", image_id=handle.id)
    response.headers["Location"] = where
    return Accepted(id=handle.id, result=where)


@app.get("/results/{image_id}")
async def result(
    image_id: str, fleet: FleetOfApp, wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS)] = 0
) -> JSONResponse:
    """The image's answer; `wait` is for how many seconds the request may stay open until there is one."""
    try:
        answer = await fleet.handle(image_id).result(timeout=wait)
    except ResultTimeout:
        return JSONResponse({"id": image_id, "state": "pending"}, 202, _retry_after(RETRY_AFTER_SECONDS))
    return JSONResponse(answer.to_dict(), _status(answer))


def _status(answer: Result) -> int:
    """200 if any model answered; else the status that belongs to the image's error code."""
    failed = answer.error is not None and not any(each.ok for each in answer.models.values())
    return answer.error.code.spec.http_status if answer.error and failed else 200


async def _reference(request: Request, max_bytes: int) -> str | bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise HTTPException(413, f"at most {max_bytes} bytes are accepted")
    if not request.headers.get("content-type", "").startswith("application/json"):
        return bytes(body)
    try:
        return str(ImageUrl.model_validate_json(bytes(body)).url)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_context=False)) from None


@app.exception_handler(ClassifleetError)
async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Errors of a call as HTTP. What is away now may be back soon, so 503 says when to try again."""
    status = next((STATUS[kind] for kind in type(error).mro() if kind in STATUS), 500)
    seconds = error.retry_after_seconds if isinstance(error, QueueFull) else RETRY_AFTER_SECONDS
    body: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    return JSONResponse(body, status, _retry_after(seconds) if status == 503 else None)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(seconds))}
