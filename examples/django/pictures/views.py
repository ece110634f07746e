import json
import math
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import URLValidator
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from classifleet.producer import QueueFull

from . import fleets
from .models import Picture

LONGEST_WAIT_SECONDS = 10.0
check_url = URLValidator(schemes=["http", "https"])


@require_POST
@transaction.non_atomic_requests  # so that a full queue, met after the commit, is this view's to answer
def add(request: HttpRequest) -> JsonResponse:
    """`{"url": "https://…"}` is stored and will be classified; 503 if the fleet has enough to do."""
    try:
        url = json.loads(request.body)["url"]
        check_url(url)
    except (ValueError, KeyError, TypeError, ValidationError):
        return JsonResponse({"error": 'send {"url": "https://…"}'}, status=422)
    try:
        with transaction.atomic():
            picture = fleets.add(url)
    except QueueFull as full:
        picture.delete()
        headers = {"Retry-After": str(math.ceil(full.retry_after_seconds))}
        return JsonResponse({"error": str(full)}, status=503, headers=headers)
    where = reverse("picture", args=[picture.id])
    return JsonResponse(_as_json(picture), status=202, headers={"Location": where})


@require_GET
@transaction.non_atomic_requests  # no transaction stays open while this waits
def show(request: HttpRequest, picture_id: str) -> JsonResponse:
    """A picture; `?wait=5` stays up to so many seconds for its answer."""
    picture = get_object_or_404(Picture, pk=picture_id)
    try:
        wait_seconds = min(max(float(request.GET.get("wait", 0)), 0), LONGEST_WAIT_SECONDS)
    except ValueError:
        return JsonResponse({"error": "wait is a number of seconds"}, status=422)
    if picture.status == Picture.Status.PENDING:
        fleets.refresh(picture, wait_seconds)
    return JsonResponse(_as_json(picture))


def _as_json(picture: Picture) -> dict[str, Any]:
    fields = ("id", "url", "status", "error", "labels")
    return {name: getattr(picture, name) for name in fields}
