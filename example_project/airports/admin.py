from django.contrib import admin

from .models import Airport, Upload


@admin.register(Airport)
class AirportAdmin(admin.ModelAdmin):
    list_display = ["code", "name", "city", "country"]
    list_filter = ["country"]
    search_fields = ["code", "name", "city"]


@admin.register(Upload)
class UploadAdmin(admin.ModelAdmin):
    list_display = ["name", "created"]
    fields = ["name", "created"]
    readonly_fields = ["created"]
