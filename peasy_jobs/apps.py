"""The Django app."""

from django.apps import AppConfig


class PeasyJobsConfig(AppConfig):
    name = "peasy_jobs"
    verbose_name = "Peasy jobs"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from peasy_jobs import checks  # noqa: F401  registers the system checks
