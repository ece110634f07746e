from django.db import models

from classifleet.producer import Fleet, Result


class Picture(models.Model):
    """A picture and what is known of it. Its id is also its job's, known before anything is enqueued."""

    class Status(models.TextChoices):
        PENDING = "pending"
        DONE = "done"
        FAILED = "failed"

    id = models.CharField(primary_key=True, max_length=128, default=Fleet.new_id, editable=False)
    url = models.URLField(max_length=2000)
    status = models.CharField(max_length=8, choices=Status, default=Status.PENDING, db_index=True)
    error = models.CharField(max_length=32, blank=True)
    labels = models.JSONField(default=dict)

    def __str__(self) -> str:
        return f"{self.url} ({self.status})"

    def take(self, result: Result) -> None:
        """Write down an answer: labels by model, or why there are none."""
        self.status = self.Status.DONE if result.ok else self.Status.FAILED
        self.error = result.error.code.value if result.error else ""
        self.labels = {name: dict(answer.labels) for name, answer in result.models.items() if answer.ok}
        self.save()
