from django.urls import path

from . import views

urlpatterns = [
    path("", views.home, name="home"),
    path("sample/", views.import_sample, name="import_sample"),
    path("export/", views.start_export, name="start_export"),
    path("call/", views.start_call, name="start_call"),
    path("jobs/<int:pk>/", views.job_page, name="job"),
    path("jobs/<int:pk>/download/", views.download, name="download"),
    path("distance/", views.distance, name="distance"),
    path("distance/start/", views.start_distance, name="start_distance"),
]
