"""The background job: a function like any other, with @peasy.job on top."""

from django.db import transaction

from peasy_jobs.peasy_jobs import peasy

from .forms import COLUMNS, AirportRow, read_rows
from .models import Airport, Upload

CHUNK = 200
MAX_BAD_LISTED = 100


@peasy.job("import airports")
def import_airports(upload_pk, job_pk):
    rows = read_rows(Upload.objects.get(pk=upload_pk).content)
    line_of, bad, chunk = {}, [], []
    for line, row in peasy.track(job_pk, rows, "Importing rows"):
        form = AirportRow(row)
        if not form.is_valid():
            bad.append({"line": line, "error": form.error_text()})
        elif (code := form.instance.code) in line_of:
            bad.append({"line": line, "error": f"{code} is on line {line_of[code]} already."})
        else:
            line_of[code] = line
            chunk.append(form.instance)
        if len(chunk) == CHUNK:
            save(chunk)
            chunk = []
    save(chunk)
    return {
        "rows": len(rows),
        "imported": len(line_of),
        "bad_count": len(bad),
        "bad": bad[:MAX_BAD_LISTED],
    }


def save(airports: list[Airport]) -> None:
    """One short transaction per chunk: SQLite has one writer, and the others want their turn.

    What is there already is updated. So the job may run again, also after a crash halfway,
    and the outcome is the same.
    """
    with transaction.atomic():
        Airport.objects.bulk_create(airports, update_conflicts=True, unique_fields=["code"], update_fields=COLUMNS[1:])
