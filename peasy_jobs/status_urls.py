"""The status of a job for visitors: JSON document and progress widget."""

from django.urls import path

from peasy_jobs.web import status_views

app_name = "peasy_jobs"
urlpatterns = [
    path("jobs/<int:pk>.json", status_views.job_json, name="job_json"),
    path("jobs/<int:pk>/progress/", status_views.job_progress, name="job_progress"),
]
