"""The tables: a row for each job, each runner and each minute. What may happen to a job's status is in `queue.py`."""

from contextlib import suppress
from typing import Any

from django.db import models

from peasy_jobs import conf, links, payloads, statuses
from peasy_jobs.store.querysets import JobQuerySet


class LiveIndex(models.Index):
    """An index over the rows where `where` holds, or over all rows on MariaDB and MySQL, which have no partial ones.

    Django's own `Index(condition=…)` is the same, but warns whoever uses such a database.
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
    """One `run_peasy`, for as long as it lives. Its id is new at every start, so a host name says nothing about it."""

    host = models.CharField(max_length=255)
    # Where `pid` means something: boot id and PID namespace. Empty where that cannot be told.
    host_id = models.CharField(max_length=255)
    pid = models.PositiveBigIntegerField()
    # When the process started, in the kernel's own unit: a pid alone may have been given to another process since.
    pid_started = models.CharField(max_length=32)
    queues = models.JSONField(default=list)
    worker_type = models.CharField(max_length=7)
    concurrency = models.PositiveIntegerField()
    started = models.DateTimeField()
    heartbeat = models.DateTimeField()
    # Seconds since 1970 by the database's clock. Not a datetime: without USE_TZ those repeat an hour every autumn.
    lease_until = models.FloatField()

    class Meta:
        verbose_name = "runner"

    def __str__(self) -> str:
        return f"runner {self.pk} on {self.host}, pid {self.pid}"


class PeasyJobQueue(models.Model):
    """One job: a call of a job function that was enqueued, with all that is known of it."""

    ENQUEUED = statuses.ENQUEUED
    SCHEDULED = statuses.SCHEDULED
    ONGOING = statuses.ONGOING
    COMPLETED = statuses.COMPLETED
    FAILED = statuses.FAILED
    CANCELLED = statuses.CANCELLED
    STATUS_CHOICES = statuses.CHOICES

    # What belongs to the people who enqueue and watch: the rest is changed by the verbs of `objects` alone.
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
    timeout = models.FloatField(null=True)  # seconds; None: PEASY_JOB_TIMEOUT
    crash_retries = models.PositiveIntegerField(null=True)  # None: PEASY_CRASH_RETRIES

    status = models.CharField(max_length=1, choices=STATUS_CHOICES, default=ENQUEUED)
    status_msg = models.CharField(max_length=255, default="")
    extra = models.JSONField(null=True)
    result_data = models.BinaryField(null=True)
    # One entry per failed attempt, the newest last: at, where, exception (its class path), message, traceback.
    errors = models.JSONField(default=list)

    # Set from claim to the end, whoever ends it: a row that names a runner is being run. No constraint: claiming
    # would lock the runner's row against its own heartbeat.
    runner = models.ForeignKey(
        PeasyRunner,
        on_delete=models.DO_NOTHING,
        null=True,
        db_constraint=False,
        db_index=False,
        related_name="jobs",
    )
    claims = models.PositiveIntegerField(
        default=0
    )  # fences every later write; never reset, never lowered
    attempts = models.PositiveIntegerField(default=0)
    crashes = models.PositiveIntegerField(default=0)

    created = models.DateTimeField(auto_now_add=True)
    started = models.DateTimeField(null=True)
    completed = models.DateTimeField(null=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        verbose_name = "job"
        ordering = ("-id",)
        indexes = (
            # `claims >= 0` is always true. A claim from named queues does not say it: PostgreSQL would look for a few
            # jobs of a queue in this index, behind the backlog of the others.
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
                # Not by status: SQLite does not see that one of three is meant by a status that it is asked for.
                fields=["status", "completed", "id"],
                name="peasy_finished",
                where=models.Q(completed__isnull=False),
            ),
            LiveIndex(
                fields=["status", "completed"],
                name="peasy_cancelled",
                where=models.Q(status="X", completed__isnull=True),
            ),
            # For the pages. `id >= 0` is always true. A claim does not say it: SQLite would read all jobs that wait
            # out of this index and sort them by priority.
            LiveIndex(fields=["status", "id"], name="peasy_listed", where=models.Q(id__gte=0)),
        )

    def __str__(self) -> str:
        return f"{self.title} (job {self.pk})"

    def save(self, **kwargs: Any) -> None:
        """Insert a new row; of an existing one write only `USER_FIELDS`, unless `update_fields` says otherwise.

        An old copy of a row must not undo a cancel, a claim or a finish that happened since it was read.
        """
        if (
            not self._state.adding
            and not kwargs.get("force_insert")
            and kwargs.get("update_fields") is None
        ):
            kwargs["update_fields"] = self.USER_FIELDS
        super().save(**kwargs)

    def cancel(self) -> bool:
        """Cancel this job: `peasy.cancel` with its primary key."""
        cancelled = type(self).objects.using(self._state.db).cancel(self.pk)
        with suppress(type(self).DoesNotExist):
            self.refresh_from_db(fields=["status", "completed"])
        return bool(cancelled)

    @property
    def status_url(self) -> str:
        """The path of this job's JSON document, signed: whoever has it may see the job. See `peasy_jobs.status`."""
        return links.signed_url(self, "job_json")

    @property
    def progress_url(self) -> str:
        """The path of this job's progress widget, signed: whoever has it may see the job."""
        return links.signed_url(self, "job_progress")

    @property
    def is_over(self) -> bool:
        """Whether it has ended: a cancelled job may still be running."""
        return self.status in statuses.FINISHED and self.runner_id is None

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments. Raises `peasy_jobs.payloads.PayloadRefused` if this site did not write them."""
        return tuple(self._load(self.args_data, payloads.ARGS) or ())

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments. Raises `peasy_jobs.payloads.PayloadRefused` if this site did not write them."""
        return self._load(self.kwargs_data, payloads.KWARGS) or {}

    @property
    def result(self) -> Any:
        """What the job returned. Raises `peasy_jobs.payloads.PayloadRefused` if this site did not write it."""
        return self._load(self.result_data, payloads.RESULT)

    @property
    def error(self) -> str:
        """What went wrong in the last failed attempt, in one line; empty when none failed."""
        return self._last_error("message")

    @property
    def traceback(self) -> str:
        """The traceback of the last failed attempt; empty when none failed or it failed outside the job's own code."""
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
    """What ended within a minute, kept for two days: finished jobs are pruned. Read it with `peasy_jobs.statistics`."""

    minute = models.IntegerField(primary_key=True)  # since 1970 by the database's clock
    completed = models.IntegerField(default=0)
    failed = models.IntegerField(default=0)
    cancelled = models.IntegerField(default=0)  # while they ran, or by themselves
    # How many jobs waited and ran for how long: `statistics.EDGES`. Columns, because only those can be added to.
    w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11 = (
        models.IntegerField(default=0) for _ in range(12)
    )
    r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10, r11 = (
        models.IntegerField(default=0) for _ in range(12)
    )
    # The longest time that any of them waited and ran, in seconds. None where none did, or where nobody kept it.
    waited_max, run_max = (models.FloatField(null=True) for _ in range(2))

    def __str__(self) -> str:
        return f"minute {self.minute}"
