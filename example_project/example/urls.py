from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("airports.urls")),
    path("admin/", admin.site.urls),
    path("peasy/", include("peasy_jobs.urls")),
]
