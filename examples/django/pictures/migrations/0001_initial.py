from django.db import migrations, models

from classifleet.producer import Fleet


class Migration(migrations.Migration):
    initial = True

    dependencies = []  # noqa: RUF012 - Django's way

    operations = [  # noqa: RUF012 - Django's way
        migrations.CreateModel(
            name="Picture",
            fields=[
                (
                    "id",
                    models.CharField(
                        default=Fleet.new_id, editable=False, max_length=128, primary_key=True, serialize=False
                    ),
                ),
                ("url", models.URLField(max_length=2000)),
                (
                    "status",
                    models.CharField(
                        choices=[("pending", "Pending"), ("done", "Done"), ("failed", "Failed")],
                        db_index=True,
                        default="pending",
                        max_length=8,
                    ),
                ),
                ("error", models.CharField(blank=True, max_length=32)),
                ("labels", models.JSONField(default=dict)),
            ],
        ),
    ]
