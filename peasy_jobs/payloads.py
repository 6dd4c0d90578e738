"""Serialise arguments, results and texts for the database. The only module that uses pickle.

A stored payload begins with one byte that names its format: `J`, followed by JSON, or `P`, followed
by a signature, a colon and a pickle. Loading a pickle can run code, so its signature is always
checked first.
"""

import io
import json
import math
import pickle
from typing import Any

from django.core.signing import Signer
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

JSON, PICKLE = b"J", b"P"
ARGS, KWARGS, RESULT = "arguments", "keyword arguments", "results"

# Created once: json.dumps() would create an encoder each time, json.loads() detect the encoding.
_as_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode


class PayloadError(ValueError):
    """A value cannot be stored.

    advice: what to pass as an argument instead.
    """

    def __init__(
        self, reason: str, advice: str = "Pass plain values, such as a primary key."
    ) -> None:
        super().__init__(reason)
        self.advice = advice


class PayloadRefused(Exception):
    """A stored payload was not written by this site, or for another job function or column."""


def dumps(value: Any, *, job_name: str, column: str, max_bytes: int, serializer: str) -> bytes:
    """Return the bytes that store `value` in a column of a job.

    job_name: dotted name of the job function; a signature is valid for this function only.
    column: `ARGS`, `KWARGS` or `RESULT`; a signature is valid for this column only.
    max_bytes: maximum size of the result in bytes.
    serializer: "pickle", or "json" to refuse values that need a pickle.
    Values that JSON restores exactly, types included, are stored as JSON, all others as a signed
    pickle. Raise `PayloadError` if the value is too large or cannot be stored either way.
    """
    data = _json_payload(value)
    if data is None:
        data = signed(_pickled(value, column, serializer), job_name=job_name, column=column)
    if len(data) > max_bytes:
        raise PayloadError(
            f"{len(data):,} bytes are more than PEASY_MAX_PAYLOAD, which is {max_bytes:,}",
            "Store the data first, in a file or a row, and pass its path or primary key.",
        )
    return data


def _json_payload(value: Any) -> bytes | None:
    """Return `value` as a JSON payload; None if JSON would not restore it exactly."""
    try:
        return JSON + _as_json(value).encode() if _is_plain(value) else None
    except (RecursionError, ValueError):
        # A list that contains itself, a lone surrogate, or an integer of 5,000 digits.
        return None


def _is_plain(value: Any) -> bool:
    """Return whether JSON restores `value` exactly. Subclasses and non-string keys would change."""
    kind = type(value)
    if value is None or kind is str or kind is int or kind is bool:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is list:
        return all(map(_is_plain, value))
    return kind is dict and all(type(key) is str and _is_plain(item) for key, item in value.items())


def _pickled(value: Any, column: str, serializer: str) -> bytes:
    if serializer == "json":
        raise PayloadError('only plain JSON values can be stored while PEASY_SERIALIZER is "json"')
    buffer = io.BytesIO()
    pickler = pickle.Pickler if column == RESULT else _ArgumentPickler
    try:
        pickler(buffer, protocol=5).dump(value)
    except PayloadError:
        raise
    except (Exception, SystemExit) as error:  # pickling runs the value's own code
        raise PayloadError(text(error, 200) or type(error).__name__) from error
    return buffer.getvalue()


class _ArgumentPickler(pickle.Pickler):
    """Refuse values that would be outdated when the job runs, although Django can pickle them."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Model):
            raise PayloadError(
                "a model instance would be outdated when the job runs",
                "Pass its primary key and load it in the job, which then sees it as it is by then.",
            )
        if isinstance(value, QuerySet):
            raise PayloadError(
                "a queryset would be outdated when the job runs",
                "Pass the primary keys and load them in the job, "
                "which then sees the rows as they are by then.",
            )
        if isinstance(value, HttpRequest):
            raise PayloadError("a request cannot be used after its response")
        return NotImplemented


def loads(data: bytes | memoryview, *, job_name: str, column: str, serializer: str) -> Any:
    """Return the value that `dumps` stored with the same job name and column.

    Raise `PayloadRefused` if this site did not store it there, if it is damaged, or if it is a
    pickle and `serializer` is "json".
    """
    data = bytes(data)
    if data[:1] == JSON:
        return _load_json(data[1:], column)
    if data[:1] == PICKLE:
        return _load_pickle(data[1:], job_name, column, serializer)
    raise PayloadRefused(
        f"The stored {column} of this job are not in a format that peasy_jobs writes."
    )


def _load_json(data: bytes, column: str) -> Any:
    try:
        value = _from_json(data.decode())
    except (ValueError, RecursionError) as error:
        raise PayloadRefused(f"The stored {column} of this job are damaged: {error}.") from None
    if column != RESULT and type(value) is not (list if column == ARGS else dict):
        raise PayloadRefused(
            f"The stored {column} of this job are damaged: they are {type(value).__name__}."
        )
    return value


def _load_pickle(data: bytes, job_name: str, column: str, serializer: str) -> Any:
    if serializer == "json":
        raise PayloadRefused(
            f'The stored {column} of this job are a pickle, and PEASY_SERIALIZER is "json".'
        )
    signature, _, pickled = data.partition(b":")
    signer = _signer(job_name, column)
    keys = [signer.key, *signer.fallback_keys]
    if not any(constant_time_compare(signature, signer.signature(pickled, key)) for key in keys):
        raise PayloadRefused(
            f"The stored {column} of this job were not signed by this site for {job_name}, "
            "so they were not loaded. If SECRET_KEY was changed, "
            "add the old key to SECRET_KEY_FALLBACKS."
        )
    return pickle.loads(pickled)  # noqa: S301  signed by this site for this function and column


def signed(pickled: bytes, *, job_name: str, column: str) -> bytes:
    """Return a pickle with this site's signature, as stored in this column.

    Only for pickles of trusted origin: outside this module, a migration signs those of the
    release 0.4.1.
    """
    return PICKLE + _signer(job_name, column).signature(pickled).encode() + b":" + pickled


def _signer(job_name: str, column: str) -> Signer:
    return Signer(salt=f"peasy_jobs.payloads:{column}:{job_name}")


def plain(data: bytes | memoryview | None) -> tuple[bool, Any]:
    """Return whether a payload is JSON, and its value, without ever loading a pickle."""
    data = b"" if data is None else bytes(data)
    if data[:1] != JSON:
        return False, None
    try:
        return True, _from_json(data[1:].decode())
    except (ValueError, RecursionError):
        return False, None


def text(value: object, limit: int) -> str:
    """Return `value` as text that every database can store, at most `limit` characters.

    NUL characters and lone surrogates become replacement characters.
    """
    cut = str(value)[:limit].replace("\0", "\ufffd")
    if cut.isascii():
        return cut
    return cut.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_storable_text(value: object, limit: int) -> bool:
    """Return whether `value` is text of 1 to `limit` characters that every database can store."""
    return isinstance(value, str) and 0 < len(value) <= limit and text(value, limit) == value


def json_text(value: object) -> str:
    """Return `value` as JSON text that every database can store.

    Raise `TypeError` or `ValueError` if it is not a JSON value.
    """
    return json.dumps(_with_storable_texts(value), allow_nan=False)


def _with_storable_texts(value: object) -> object:
    if isinstance(value, str):
        return text(value, len(value))
    if isinstance(value, dict):
        return {
            _with_storable_texts(key): _with_storable_texts(item) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_storable_texts(item) for item in value]
    return value
