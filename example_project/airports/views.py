"""Start a job, watch it, and download its result.

Visitors can see the jobs that they started. The session stores which jobs these are.
"""

from pathlib import Path

from django.core.files.storage import default_storage
from django.db import transaction
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from peasy_jobs.models import PeasyJobQueue

from .forms import UploadForm
from .jobs import call_tower, export_airports, find_farthest, import_airports
from .models import Airport, Upload

SAMPLE = Path(__file__).parent / "sample" / "airports.csv"


def home(request: HttpRequest) -> HttpResponse:
    form = UploadForm(request.POST, request.FILES) if request.method == "POST" else UploadForm()
    if form.is_valid():
        return start_import(
            request, name=request.FILES["file"].name, content=form.cleaned_data["file"]
        )
    names = my_jobs(request)
    jobs = [
        (job, names[str(job.pk)])
        for job in PeasyJobQueue.objects.filter(pk__in=names).order_by("-pk")
    ]
    return render(
        request,
        "airports/home.html",
        {"form": form, "jobs": jobs, "airports": Airport.objects.count()},
    )


@require_POST
def import_sample(request: HttpRequest) -> HttpResponse:
    return start_import(request, name=SAMPLE.name, content=SAMPLE.read_text(encoding="utf-8"))


@transaction.atomic
def start_import(request: HttpRequest, *, name: str, content: str) -> HttpResponse:
    """Store the upload and enqueue its job in one transaction: both are committed, or neither."""
    upload = Upload.objects.create(name=name, content=content)
    job = import_airports.using(user=request.user)(upload.pk)
    return redirect_to_job(request, job, f"Import of {name}")


@require_POST
def start_export(request: HttpRequest) -> HttpResponse:
    job = export_airports.using(user=request.user)()
    return redirect_to_job(request, job, "Export of all airports")


@require_POST
def start_call(request: HttpRequest) -> HttpResponse:
    job = call_tower.using(user=request.user)()
    return redirect_to_job(request, job, "Call to the tower")


def job_page(request: HttpRequest, pk: int) -> HttpResponse:
    job, name = my_job(request, pk)
    # The outcome has its own template, named after the job function.
    outcome = f"airports/outcomes/{job.job_name.rpartition('.')[2]}.html"
    return render(request, "airports/job.html", {"job": job, "name": name, "outcome": outcome})


def download(request: HttpRequest, pk: int) -> FileResponse:
    job, _ = my_job(request, pk)
    if job.job_name != export_airports.job_name or job.status != PeasyJobQueue.COMPLETED:
        raise Http404("There is no such file.")
    return FileResponse(
        default_storage.open(job.result["file"]), as_attachment=True, filename="airports.csv"
    )


def distance(request: HttpRequest) -> HttpResponse:
    """Show a page whose own script, distance.js, starts a job and follows it."""
    return render(request, "airports/distance.html", {"airports": Airport.objects.count()})


@require_POST
def start_distance(request: HttpRequest) -> JsonResponse:
    job = find_farthest.using(user=request.user)()
    return JsonResponse({"status": job.status_url}, status=202)


def redirect_to_job(request: HttpRequest, job: PeasyJobQueue, name: str) -> HttpResponse:
    """Remember that this visitor started the job, and redirect to its page."""
    request.session["jobs"] = {**my_jobs(request), str(job.pk): name}
    return redirect("job", job.pk)


def my_jobs(request: HttpRequest) -> dict[str, str]:
    """Return the names of the jobs that this visitor started, by primary key."""
    return request.session.get("jobs", {})


def my_job(request: HttpRequest, pk: int) -> tuple[PeasyJobQueue, str]:
    """Return a job of this visitor and its name. Raise `Http404` for any other job."""
    name = my_jobs(request).get(str(pk))
    job = PeasyJobQueue.objects.filter(pk=pk).first()
    if name is None or job is None:
        raise Http404("There is no such job.")
    return job, name
