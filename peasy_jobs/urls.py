"""The web pages: the dashboard, and what a visitor's page needs of a job."""

from peasy_jobs.status_urls import app_name, urlpatterns

__all__ = ["app_name", "urlpatterns"]
