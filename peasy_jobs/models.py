"""The tables: one row for each job, each live runner, and each minute of the statistics.

All job status changes are in the `store` package. No other module writes `status`.
"""

from contextlib import suppress
from typing import Any

from django.db import models

from peasy_jobs import conf, links, payloads, statuses
from peasy_jobs.store.querysets import JobQuerySet


class LiveIndex(models.Index):
    """A partial index: it has only the rows for which `where` is true.

    On MariaDB and MySQL, which have no partial indexes, it has all rows. Django's own
    `Index(condition=…)` does the same, but its system check warns users of these databases.
    """

    def __init__(self, *, where: models.Q, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.where = where

    def deconstruct(self) -> Any:
        path, expressions, kwargs = super().deconstruct()
        return path, expressions, {**kwargs, "where": self.where}

    def create_sql(self, model: Any, schema_editor: Any, *args: Any, **kwargs: Any) -> Any:
        condition = (
            self.where if schema_editor.connection.features.supports_partial_indexes else None
        )
        index = models.Index(fields=self.fields, name=self.name, condition=condition)
        return index.create_sql(model, schema_editor, *args, **kwargs)


class PeasyRunner(models.Model):
    """One running `run_peasy` process. It gets a new id at every start."""

    host = models.CharField(max_length=255)
    # Boot id and PID namespace: `pid` identifies a process only within these. Empty if unknown.
    host_id = models.CharField(max_length=255)
    pid = models.PositiveBigIntegerField()
    # When the process started, in the kernel's unit. The pid alone may be reused by a new process.
    pid_started = models.CharField(max_length=32)
    queues = models.JSONField(default=list)
    worker_type = models.CharField(max_length=7)
    concurrency = models.PositiveIntegerField()
    started = models.DateTimeField()
    heartbeat = models.DateTimeField()
    # Seconds since 1970 by the database's clock. A number, because without USE_TZ datetimes repeat
    # an hour every autumn.
    lease_until = models.FloatField()

    class Meta:
        verbose_name = "runner"

    def __str__(self) -> str:
        return f"runner {self.pk} on {self.host}, pid {self.pid}"


class PeasyJobQueue(models.Model):
    """One job: an enqueued call of a job function, its progress and its outcome.

    A site may change `title`, `status_msg`, `extra` and `user`. Use `cancel()` to cancel the job.
    Everything else is changed only by the methods of `objects`, which runners call.
    """

    ENQUEUED = statuses.ENQUEUED
    SCHEDULED = statuses.SCHEDULED
    ONGOING = statuses.ONGOING
    COMPLETED = statuses.COMPLETED
    FAILED = statuses.FAILED
    CANCELLED = statuses.CANCELLED
    STATUS_CHOICES = statuses.CHOICES

    # The fields that `save()` writes to an existing row.
    USER_FIELDS = ("title", "status_msg", "extra", "user")

    title = models.CharField(max_length=255)
    job_name = models.CharField(max_length=255)
    args_data = models.BinaryField(null=True)
    kwargs_data = models.BinaryField(null=True)
    user = models.ForeignKey(
        conf.user_model(), on_delete=models.SET_NULL, null=True, related_name="+"
    )

    queue_name = models.CharField(max_length=64, default="default")
    priority = models.SmallIntegerField(default=0)
    run_after = models.DateTimeField(null=True)
    timeout = models.FloatField(null=True)  # seconds; None means PEASY_JOB_TIMEOUT
    crash_retries = models.PositiveIntegerField(null=True)  # None means PEASY_CRASH_RETRIES

    status = models.CharField(max_length=1, choices=STATUS_CHOICES, default=ENQUEUED)
    status_msg = models.CharField(max_length=255, default="")
    extra = models.JSONField(null=True)
    result_data = models.BinaryField(null=True)
    # One entry for each failed attempt, the newest last. Keys: at, where, exception (its dotted
    # name), message, traceback.
    errors = models.JSONField(default=list)

    # The runner that runs the job, from the claim until it has ended; a cancelled job still runs
    # until then. Without a constraint: it would make claiming lock the runner's row, so that the
    # runner could not write its heartbeat.
    runner = models.ForeignKey(
        PeasyRunner,
        on_delete=models.DO_NOTHING,
        null=True,
        db_constraint=False,
        db_index=False,
        related_name="jobs",
    )
    # The fencing token. Every write of an attempt checks it, in case the job was claimed again.
    # It only grows.
    claims = models.PositiveIntegerField(default=0)
    attempts = models.PositiveIntegerField(default=0)  # including those that crashed
    crashes = models.PositiveIntegerField(default=0)  # attempts whose worker or runner died

    created = models.DateTimeField(auto_now_add=True)
    started = models.DateTimeField(null=True)
    completed = models.DateTimeField(null=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        verbose_name = "job"
        ordering = ("-id",)
        indexes = (
            # `claims >= 0` is always true. A claim from named queues omits it, so that PostgreSQL
            # does not use this index, where it would scan the backlog of all other queues.
            LiveIndex(
                fields=["status", "-priority", "id"],
                name="peasy_waiting",
                where=models.Q(status="Q", claims__gte=0),
            ),
            LiveIndex(
                fields=["queue_name", "status", "-priority", "id"],
                name="peasy_waiting_in_queue",
                where=models.Q(status="Q"),
            ),
            LiveIndex(fields=["status", "run_after"], name="peasy_due", where=models.Q(status="S")),
            LiveIndex(
                fields=["runner"], name="peasy_running", where=models.Q(runner__isnull=False)
            ),
            LiveIndex(
                # The condition does not list statuses: SQLite would not use the index for a query
                # of one of them.
                fields=["status", "completed", "id"],
                name="peasy_finished",
                where=models.Q(completed__isnull=False),
            ),
            LiveIndex(
                fields=["status", "completed"],
                name="peasy_cancelled",
                where=models.Q(status="X", completed__isnull=True),
            ),
            # For the pages. `id >= 0` is always true. A claim omits it, so that SQLite does not use
            # this index, where it would read all waiting jobs and sort them by priority.
            LiveIndex(fields=["status", "id"], name="peasy_listed", where=models.Q(id__gte=0)),
        )

    def __str__(self) -> str:
        return f"{self.title} (job {self.pk})"

    def save(self, **kwargs: Any) -> None:
        """Insert a new row, or update only `USER_FIELDS` of an existing row.

        Pass `update_fields` to update other fields. An outdated copy of a row must not undo what
        has happened to the job since it was read.
        """
        is_insert = self._state.adding or kwargs.get("force_insert")
        if not is_insert and kwargs.get("update_fields") is None:
            kwargs["update_fields"] = self.USER_FIELDS
        super().save(**kwargs)

    def cancel(self) -> bool:
        """Cancel this job, as `peasy.cancel` does. Return False if it had already ended.

        Update `status` and `completed` from the database.
        """
        cancelled = type(self).objects.using(self._state.db).cancel(self.pk)
        with suppress(type(self).DoesNotExist):
            self.refresh_from_db(fields=["status", "completed"])
        return bool(cancelled)

    @property
    def status_url(self) -> str:
        """The path of this job's JSON document, with a signature: whoever has it can see the job.

        It is valid for `PEASY_TOKEN_MAX_AGE` seconds. Raise `NoReverseMatch` if the URLconf
        includes neither `peasy_jobs.urls` nor `peasy_jobs.status_urls`.
        """
        return links.signed_url(self, "job_json")

    @property
    def progress_url(self) -> str:
        """The path of this job's progress widget, signed like `status_url`."""
        return links.signed_url(self, "job_progress")

    @property
    def is_over(self) -> bool:
        """Whether the job has ended. A cancelled job that is still being stopped has not."""
        return self.status in statuses.FINISHED and self.runner_id is None

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments.

        Raise `peasy_jobs.payloads.PayloadRefused` if this site did not store them, or if they are
        damaged.
        """
        return tuple(self._load(self.args_data, payloads.ARGS) or ())

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments. Raise `PayloadRefused` as `args` does."""
        return self._load(self.kwargs_data, payloads.KWARGS) or {}

    @property
    def result(self) -> Any:
        """What the job returned; None until it has. Raise `PayloadRefused` as `args` does."""
        return self._load(self.result_data, payloads.RESULT)

    @property
    def error(self) -> str:
        """The message of the last failed attempt, in one line. Empty if no attempt failed."""
        return self._last_error("message")

    @property
    def traceback(self) -> str:
        """The traceback of the last failed attempt.

        Empty if no attempt failed, or if it failed outside the job's own code.
        """
        return self._last_error("traceback")

    def _last_error(self, key: str) -> str:
        entry = self.errors[-1] if isinstance(self.errors, list) and self.errors else None
        return str(entry.get(key, "")) if isinstance(entry, dict) else ""

    def _load(self, data: bytes | memoryview | None, column: str) -> Any:
        if data is None:
            return None
        return payloads.loads(
            data, job_name=self.job_name, column=column, serializer=conf.get().serializer
        )


class PeasyMinute(models.Model):
    """Statistics of the jobs that ended within one minute, kept for two days.

    They cannot be derived from the jobs, which are pruned.
    """

    minute = models.IntegerField(primary_key=True)  # minutes since 1970 by the database's clock
    completed = models.IntegerField(default=0)
    failed = models.IntegerField(default=0)
    cancelled = models.IntegerField(default=0)  # by a user or by the job, while it ran
    # Histograms: how many jobs waited (w) and ran (r) between the times in `durations.BOUNDS`. They
    # are columns, because SQL can increment a column but not an element of a JSON list.
    w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11 = (
        models.IntegerField(default=0) for _ in range(12)
    )
    r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11 = (
        models.IntegerField(default=0) for _ in range(12)
    )
    # The longest time that a job waited and ran, in seconds. None if no job did, and in rows that
    # an earlier release wrote.
    waited_max, run_max = (models.FloatField(null=True) for _ in range(2))

    def __str__(self) -> str:
        return f"minute {self.minute}"
