"""Validation of an uploaded CSV file and of each of its rows."""

import csv
import io

from django import forms
from django.core.exceptions import NON_FIELD_ERRORS

from .models import Airport

COLUMNS = ["code", "name", "city", "country", "latitude", "longitude", "elevation"]
MAX_UPLOAD = 5_000_000  # bytes
NOT_TEXT = "This is not a UTF-8 text file. In a spreadsheet, choose “CSV UTF-8” when saving."


def read_rows(text: str) -> list[tuple[int, dict]]:
    """Return the rows of a CSV file with their line numbers.

    Raise `ValueError`, with a message for the visitor, if the file is invalid.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="surplus")
    try:
        found = [name.strip().lower() for name in reader.fieldnames or []]
        missing = [name for name in COLUMNS if name not in found]
        if missing:
            raise ValueError(
                "The first line must name the columns, separated by commas. "
                f"Missing: {', '.join(missing)}."
            )
        reader.fieldnames = found
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} is not CSV: {error}.") from error
    if not rows:
        raise ValueError("There are no rows below the line with the column names.")
    return rows


class UploadForm(forms.Form):
    file = forms.FileField(
        label="CSV file",
        help_text=f"Columns: {', '.join(COLUMNS)}. UTF-8, at most 5 MB.",
        widget=forms.ClearableFileInput(attrs={"accept": ".csv,text/csv"}),
    )

    def clean_file(self) -> str:
        file = self.cleaned_data["file"]
        if file.size > MAX_UPLOAD:
            raise forms.ValidationError(
                f"This file has {file.size / 1e6:.1f} MB; the limit is 5 MB. "
                "Split it and import the parts one after the other."
            )
        try:
            text = file.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise forms.ValidationError(NOT_TEXT) from error
        if "\0" in text:
            raise forms.ValidationError(NOT_TEXT)
        try:
            read_rows(text)
        except ValueError as error:
            raise forms.ValidationError(str(error)) from error
        return text


class AirportRow(forms.ModelForm):
    class Meta:
        model = Airport
        fields = COLUMNS

    def validate_unique(self) -> None:
        """Accept airports that already exist: the import updates them."""

    def clean(self) -> None:
        super().clean()
        if "surplus" in self.data:
            raise forms.ValidationError("This row has more values than columns.")

    def error_text(self) -> str:
        return " ".join(
            " ".join(messages) if field == NON_FIELD_ERRORS else f"{field}: {' '.join(messages)}"
            for field, messages in self.errors.items()
        )
