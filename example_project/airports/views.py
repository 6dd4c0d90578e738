"""Three pages: hand in a file, import the sample, watch an import."""

from pathlib import Path

from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST

from peasy_jobs.models import PeasyJobQueue

from .forms import UploadForm
from .jobs import import_airports
from .models import Airport, Upload

SAMPLE = Path(__file__).parent / "sample" / "airports.csv"
FINISHED = [PeasyJobQueue.COMPLETED, PeasyJobQueue.FAILED, PeasyJobQueue.CANCELLED]


def home(request: HttpRequest) -> HttpResponse:
    form = UploadForm(request.POST, request.FILES) if request.method == "POST" else UploadForm()
    if form.is_valid():
        return start_import(request, name=request.FILES["file"].name, content=form.cleaned_data["file"])
    jobs = PeasyJobQueue.objects.filter(pk__in=my_imports(request)).order_by("-pk")
    imports = [(job, my_imports(request)[str(job.pk)]) for job in jobs]
    context = {"form": form, "imports": imports, "airports": Airport.objects.count()}
    return render(request, "airports/home.html", context)


@require_POST
def import_sample(request: HttpRequest) -> HttpResponse:
    content = SAMPLE.read_text(encoding="utf-8")
    return start_import(request, name=SAMPLE.name, content=content)


def import_page(request: HttpRequest, pk: int) -> HttpResponse:
    name = my_imports(request).get(str(pk))
    job = PeasyJobQueue.objects.filter(pk=pk).first()
    if name is None or job is None:
        raise Http404("There is no such import.")
    context = {"job": job, "name": name, "finished": job.status in FINISHED}
    return render(request, "airports/import.html", context)


def start_import(request: HttpRequest, *, name: str, content: str) -> HttpResponse:
    """The upload and its job are committed together, or not at all."""
    with transaction.atomic():
        upload = Upload.objects.create(name=name, content=content)
        job = import_airports.using(user=request.user)(upload.pk)
    request.session["imports"] = {**my_imports(request), str(job.pk): name}
    return redirect("import_page", job.pk)


def my_imports(request: HttpRequest) -> dict[str, str]:
    """What this visitor started: file names by job, kept in the visitor's session."""
    return request.session.get("imports", {})
