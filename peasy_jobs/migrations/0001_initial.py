from django.db import migrations, models


class Migration(migrations.Migration):
    """The same as in release 0.4.1, so that its databases are upgraded in place."""

    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="PeasyJobQueue",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("job_name", models.CharField(max_length=255)),
                ("pickled_args", models.BinaryField(null=True)),
                ("pickled_kwargs", models.BinaryField(null=True)),
                ("result", models.BinaryField(null=True)),
                ("title", models.CharField(max_length=255)),
                ("status_msg", models.CharField(max_length=255)),
                ("extra", models.JSONField(null=True)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("Q", "Enqueued"),
                            ("O", "Ongoing"),
                            ("C", "Completed"),
                            ("F", "Failed"),
                            ("X", "Cancelled"),
                        ],
                        default="Q",
                        max_length=1,
                    ),
                ),
                ("created", models.DateTimeField(auto_now_add=True)),
                ("started", models.DateTimeField(null=True)),
                ("completed", models.DateTimeField(null=True)),
            ],
            options={"verbose_name_plural": "Peasy Jobs", "ordering": ("-created",)},
        ),
    ]
