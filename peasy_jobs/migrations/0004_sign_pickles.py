from django.db import migrations, transaction

from peasy_jobs import payloads

CHUNK = 100  # rows
COLUMNS = {
    "args_data": payloads.ARGS,
    "kwargs_data": payloads.KWARGS,
    "result_data": payloads.RESULT,
}


def sign_pickles(apps, schema_editor):
    """Sign the pickles that release 0.4.1 stored, without loading them.

    They are trusted here because that release ran this site's jobs; unsigned pickles that are
    stored later are never loaded.
    """
    jobs = apps.get_model("peasy_jobs", "PeasyJobQueue").objects.using(
        schema_editor.connection.alias
    )
    last = 0
    while chunk := list(jobs.filter(pk__gt=last).order_by("pk").only("job_name", *COLUMNS)[:CHUNK]):
        # One statement per row: a chunk could exceed the size that MariaDB accepts.
        with transaction.atomic(using=jobs.db):
            for job in chunk:
                signed = {
                    name: payloads.signed(bytes(data), job_name=job.job_name, column=column)
                    for name, column in COLUMNS.items()
                    if (data := getattr(job, name)) is not None
                    and bytes(data[:1]) not in (payloads.JSON, payloads.PICKLE)
                }
                if signed:
                    jobs.filter(pk=job.pk).update(**signed)
        last = chunk[-1].pk


def forget_messages(apps, schema_editor):
    """Remove the messages that release 0.4.1 stored in every row: only jobs set messages now."""
    jobs = apps.get_model("peasy_jobs", "PeasyJobQueue").objects.using(
        schema_editor.connection.alias
    )
    jobs.filter(status__in="QO", status_msg__in=("Enqueued", "Starting...")).update(status_msg="")


class Migration(migrations.Migration):
    # Commit after every row, so that an interrupted migration continues where it stopped.
    atomic = False

    dependencies = [("peasy_jobs", "0003_engine")]

    operations = [migrations.RunPython(sign_pickles), migrations.RunPython(forget_messages)]
