from django.urls import path

from . import views

urlpatterns = [
    path("", views.home, name="home"),
    path("sample/", views.import_sample, name="import_sample"),
    path("imports/<int:pk>/", views.import_page, name="import_page"),
]
