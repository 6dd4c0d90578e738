import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

import peasy_jobs.models


class Migration(migrations.Migration):
    dependencies = [
        ("peasy_jobs", "0002_peasyjobqueue_user"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name="PeasyRunner",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("host", models.CharField(max_length=255)),
                ("host_id", models.CharField(max_length=255)),
                ("pid", models.PositiveBigIntegerField()),
                ("pid_started", models.CharField(max_length=32)),
                ("queues", models.JSONField(default=list)),
                ("worker_type", models.CharField(max_length=7)),
                ("concurrency", models.PositiveIntegerField()),
                ("started", models.DateTimeField()),
                ("heartbeat", models.DateTimeField()),
                ("lease_until", models.FloatField()),
            ],
            options={"verbose_name": "runner"},
        ),
        migrations.AlterModelOptions(
            name="peasyjobqueue",
            options={"ordering": ("-id",), "verbose_name": "job"},
        ),
        migrations.RenameField(
            model_name="peasyjobqueue",
            old_name="pickled_args",
            new_name="args_data",
        ),
        migrations.RenameField(
            model_name="peasyjobqueue",
            old_name="pickled_kwargs",
            new_name="kwargs_data",
        ),
        migrations.RenameField(
            model_name="peasyjobqueue",
            old_name="result",
            new_name="result_data",
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="attempts",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="claims",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="crash_retries",
            field=models.PositiveIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="crashes",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="errors",
            field=models.JSONField(default=list),
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="priority",
            field=models.SmallIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="queue_name",
            field=models.CharField(default="default", max_length=64),
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="run_after",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="timeout",
            field=models.FloatField(null=True),
        ),
        migrations.AlterField(
            model_name="peasyjobqueue",
            name="status",
            field=models.CharField(
                choices=[
                    ("Q", "Enqueued"),
                    ("S", "Scheduled"),
                    ("O", "Ongoing"),
                    ("C", "Completed"),
                    ("F", "Failed"),
                    ("X", "Cancelled"),
                ],
                default="Q",
                max_length=1,
            ),
        ),
        migrations.AlterField(
            model_name="peasyjobqueue",
            name="status_msg",
            field=models.CharField(default="", max_length=255),
        ),
        migrations.AlterField(
            model_name="peasyjobqueue",
            name="user",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddField(
            model_name="peasyjobqueue",
            name="runner",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                null=True,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="jobs",
                to="peasy_jobs.peasyrunner",
            ),
        ),
        migrations.AddIndex(
            model_name="peasyjobqueue",
            index=peasy_jobs.models.LiveIndex(
                fields=["status", "-priority", "id"],
                name="peasy_waiting",
                where=models.Q(("claims__gte", 0), ("status", "Q")),
            ),
        ),
        migrations.AddIndex(
            model_name="peasyjobqueue",
            index=peasy_jobs.models.LiveIndex(
                fields=["queue_name", "status", "-priority", "id"],
                name="peasy_waiting_in_queue",
                where=models.Q(("status", "Q")),
            ),
        ),
        migrations.AddIndex(
            model_name="peasyjobqueue",
            index=peasy_jobs.models.LiveIndex(
                fields=["status", "run_after"], name="peasy_due", where=models.Q(("status", "S"))
            ),
        ),
        migrations.AddIndex(
            model_name="peasyjobqueue",
            index=peasy_jobs.models.LiveIndex(
                fields=["runner"], name="peasy_running", where=models.Q(("runner__isnull", False))
            ),
        ),
        migrations.AddIndex(
            model_name="peasyjobqueue",
            index=peasy_jobs.models.LiveIndex(
                fields=["status", "completed", "id"],
                name="peasy_finished",
                where=models.Q(("completed__isnull", False)),
            ),
        ),
        migrations.AddIndex(
            model_name="peasyjobqueue",
            index=peasy_jobs.models.LiveIndex(
                fields=["status", "completed"],
                name="peasy_cancelled",
                where=models.Q(("completed__isnull", True), ("status", "X")),
            ),
        ),
    ]
