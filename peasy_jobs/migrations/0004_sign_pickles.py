from django.db import migrations, transaction

from peasy_jobs import payloads

CHUNK = 100  # rows
COLUMNS = {
    "args_data": payloads.ARGS,
    "kwargs_data": payloads.KWARGS,
    "result_data": payloads.RESULT,
}


def sign_pickles(apps, schema_editor):
    """Sign what the published package has pickled, without loading it. It is trusted this once: later nothing is."""
    jobs = apps.get_model("peasy_jobs", "PeasyJobQueue").objects.using(
        schema_editor.connection.alias
    )
    last = 0
    while chunk := list(jobs.filter(pk__gt=last).order_by("pk").only("job_name", *COLUMNS)[:CHUNK]):
        # A row at a time: together they can be more than MariaDB takes in one statement.
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
    """The published package writes these into every row, and a message that a job shows is the job's own."""
    jobs = apps.get_model("peasy_jobs", "PeasyJobQueue").objects.using(
        schema_editor.connection.alias
    )
    jobs.filter(status__in="QO", status_msg__in=("Enqueued", "Starting...")).update(status_msg="")


class Migration(migrations.Migration):
    # A chunk at a time: one that was interrupted goes on where it stopped.
    atomic = False

    dependencies = [("peasy_jobs", "0003_engine")]

    operations = [migrations.RunPython(sign_pickles), migrations.RunPython(forget_messages)]
