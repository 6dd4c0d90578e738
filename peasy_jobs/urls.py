"""All web pages of peasy_jobs: the dashboard, and the status of a job for visitors."""

from django.urls import path

from peasy_jobs import status_urls
from peasy_jobs.web import views

app_name = "peasy_jobs"
urlpatterns = [
    path("", views.dashboard, name="dashboard"),
    path("live/", views.dashboard_live, name="dashboard_live"),
    path("statistics/", views.statistics, name="statistics"),
    path("statistics/charts/", views.statistics_charts, name="statistics_charts"),
    path("jobs/<int:pk>/", views.job_detail, name="job_detail"),
    path("jobs/<int:pk>/live/", views.job_live, name="job_live"),
    path("jobs/actions/", views.jobs_action, name="jobs_action"),
    *status_urls.urlpatterns,
]
