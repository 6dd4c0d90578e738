"""The background jobs: ordinary functions, decorated with `@peasy.job`."""

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

CHUNK = 100  # airports in one transaction
MAX_ERRORS_SHOWN = 100
EARTH_RADIUS = 6371  # kilometres


@peasy.job("Import airports")
def import_airports(upload_pk, job_pk):
    """Import the airports of an uploaded CSV file. Report the rows that are invalid."""
    rows = read_rows(Upload.objects.get(pk=upload_pk).content)
    line_of = {}
    errors = []
    chunk = []
    for line, row in peasy.track(job_pk, rows, "Importing rows"):
        form = AirportRow(row)
        if not form.is_valid():
            errors.append({"line": line, "error": form.error_text()})
            continue
        code = form.instance.code
        if code in line_of:
            errors.append({"line": line, "error": f"{code} is on line {line_of[code]} already."})
            continue
        line_of[code] = line
        chunk.append(form.instance)
        if len(chunk) == CHUNK:
            save(chunk)
            chunk = []
            time.sleep(settings.IMPORT_PAUSE)  # slows the demo down, so that you can watch it
    save(chunk)
    return {
        "rows": len(rows),
        "imported": len(line_of),
        "bad_count": len(errors),
        "bad": errors[:MAX_ERRORS_SHOWN],
    }


def save(airports: list[Airport]) -> None:
    """Insert or update these airports in one short transaction.

    Short, because SQLite has one writer at a time. Existing airports are updated, so that the job
    can run again, also after a crash halfway, with the same outcome.
    """
    with transaction.atomic():
        Airport.objects.bulk_create(
            airports, update_conflicts=True, unique_fields=["code"], update_fields=COLUMNS[1:]
        )


@peasy.job("Export airports")
def export_airports(job_pk):
    """Write a CSV file to the storage, which may be a bucket. Return its name for the page."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    airports = Airport.objects.values_list(*COLUMNS)
    for row in peasy.track(job_pk, airports, "Exporting airports"):
        writer.writerow(row)
    content = ContentFile(text.getvalue().encode())
    return {
        "file": default_storage.save(f"exports/airports-{job_pk}.csv", content),
        "rows": len(airports),
    }


@peasy.job("Call the tower", retries=3, backoff=[4, 8, 16], retry_on=ConnectionError)
def call_tower(job_pk):
    """Fail twice, then succeed. The job is retried after 4, 8 and 16 seconds."""
    attempt = len(PeasyJobQueue.objects.get(pk=job_pk).errors) + 1
    if attempt < 3:
        peasy.update_status(job_pk, status_msg=f"Attempt {attempt} of 4: nobody answers.")
        raise ConnectionError("Nobody answers.")
    peasy.update_status(job_pk, status_msg=f"Attempt {attempt} of 4: the tower answers.")


@peasy.job("Find the airports that are farthest apart")
def find_farthest(job_pk):
    """Compare every pair of airports. The page of this job follows it with its own script."""
    airports = list(Airport.objects.all())
    longest = 0.0
    farthest = ()
    for number, one in peasy.track(job_pk, list(enumerate(airports)), "Comparing airports"):
        for other in airports[number + 1 :]:
            kilometres = distance(one, other)
            if kilometres > longest:
                longest = kilometres
                farthest = (one, other)
    return {"km": round(longest), "airports": [str(airport) for airport in farthest]}


def distance(one: Airport, other: Airport) -> float:
    """Return the kilometres between two airports along the surface of the earth.

    This is the haversine formula: https://en.wikipedia.org/wiki/Haversine_formula
    """
    half_latitude = radians(other.latitude - one.latitude) / 2
    half_longitude = radians(other.longitude - one.longitude) / 2
    cosines = cos(radians(one.latitude)) * cos(radians(other.latitude))
    haversine = sin(half_latitude) ** 2 + cosines * sin(half_longitude) ** 2
    return 2 * EARTH_RADIUS * asin(min(1, sqrt(haversine)))
