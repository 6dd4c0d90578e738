"""The background jobs: functions like any other, with @peasy.job on top."""

import csv
import io
import time
from math import asin, cos, radians, sin, sqrt

from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db import transaction

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import peasy

from .forms import COLUMNS, AirportRow, read_rows
from .models import Airport, Upload

CHUNK = 100
MAX_BAD_LISTED = 100


@peasy.job("Import airports")
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
            time.sleep(settings.IMPORT_PAUSE)  # only so that there is something to watch
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
        Airport.objects.bulk_create(
            airports, update_conflicts=True, unique_fields=["code"], update_fields=COLUMNS[1:]
        )


@peasy.job("Export airports")
def export_airports(job_pk):
    """Writes a file, and returns its name: by that the page finds it. The storage may be a bucket as well."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    airports = Airport.objects.values_list(*COLUMNS)
    for row in peasy.track(job_pk, airports, "Exporting airports"):
        writer.writerow(row)
    file = ContentFile(text.getvalue().encode())
    return {
        "file": default_storage.save(f"exports/airports-{job_pk}.csv", file),
        "rows": len(airports),
    }


@peasy.job("Call the tower", retries=3, backoff=[4, 8, 16], retry_on=ConnectionError)
def call_tower(job_pk):
    """Nobody answers the first two times. A failed attempt is followed by another, after 4, 8 and 16 seconds."""
    attempt = len(PeasyJobQueue.objects.get(pk=job_pk).errors) + 1
    if attempt < 3:
        peasy.update_status(job_pk, status_msg=f"Attempt {attempt} of 4: nobody answers.")
        raise ConnectionError("Nobody answers.")
    peasy.update_status(job_pk, status_msg=f"Attempt {attempt} of 4: the tower answers.")


@peasy.job("Find the airports that are farthest apart")
def find_farthest(job_pk):
    airports = list(Airport.objects.all())
    best = (0.0, None, None)
    for number, one in peasy.track(job_pk, list(enumerate(airports)), "Comparing airports"):
        best = max(
            [best, *((distance(one, other), one.pk, other.pk) for other in airports[number + 1 :])]
        )
    km, *pks = best
    return {
        "km": round(km),
        "airports": [str(airport) for airport in airports if airport.pk in pks],
    }


def distance(one: Airport, other: Airport) -> float:
    """Kilometres along the surface of the earth."""
    north, east = (
        radians(other.latitude - one.latitude) / 2,
        radians(other.longitude - one.longitude) / 2,
    )
    across = (
        sin(north) ** 2 + cos(radians(one.latitude)) * cos(radians(other.latitude)) * sin(east) ** 2
    )
    return 2 * 6371 * asin(min(1, sqrt(across)))
