from typing import Any

from django.core.management.base import BaseCommand

from pictures import fleets
from pictures.models import Picture


class Command(BaseCommand):
    help = "Take over the answers of pending pictures, and enqueue those that a broken connection kept back."

    def handle(self, *_args: Any, **_options: Any) -> None:
        for picture in Picture.objects.filter(status=Picture.Status.PENDING).iterator():
            fleets.refresh(picture)
        left = Picture.objects.filter(status=Picture.Status.PENDING).count()
        self.stdout.write(f"{left} pictures are pending")
