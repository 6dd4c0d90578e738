"""Airports, and the CSV files that visitors upload."""

from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models


class Airport(models.Model):
    code = models.CharField(
        max_length=3,
        unique=True,
        validators=[RegexValidator(r"^[A-Z]{3}$", "Use three capital letters.")],
    )
    name = models.CharField(max_length=100)
    city = models.CharField(max_length=100)
    country = models.CharField(
        max_length=2,
        validators=[RegexValidator(r"^[A-Z]{2}$", "Use two capital letters.")],
    )
    latitude = models.FloatField(
        validators=[MinValueValidator(-90), MaxValueValidator(90)],
    )
    longitude = models.FloatField(
        validators=[MinValueValidator(-180), MaxValueValidator(180)],
    )
    elevation = models.FloatField(
        help_text="Feet above sea level.",
        validators=[MinValueValidator(-2000), MaxValueValidator(30000)],
    )

    class Meta:
        ordering = ["code"]

    def __str__(self) -> str:
        return f"{self.code} {self.name}"


class Upload(models.Model):
    """An uploaded file, stored in the database: the runner may be on another machine."""

    name = models.CharField(max_length=255)
    content = models.TextField()
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name
