"""Arguments, results and texts to what a database can store, and back. The only module that pickles.

A stored payload is one byte that says how it is written, then the value: `J` and JSON, or `P`, a signature and a
pickle. A pickle can run code when it is loaded, so it is never loaded before its signature was checked.
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
_as_json = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":")
).encode  # json.dumps would make one each time
_from_json = json.JSONDecoder().decode  # json.loads would ask which encoding this is


class PayloadError(ValueError):
    """A value cannot be stored."""


class PayloadRefused(Exception):
    """A stored payload was not written by this site, or not for this job function and column."""


def dumps(value: Any, *, job_name: str, column: str, max_bytes: int, serializer: str) -> bytes:
    """The bytes to store for `value` in `column` of a job of `job_name`.

    What JSON gives back exactly as it was is written as JSON, the rest as a signed pickle. Raises `PayloadError` when
    the value can be written neither way, when `serializer` is "json" and it would need a pickle, or when it takes
    more than `max_bytes`.
    """
    try:
        data = JSON + _as_json(value).encode() if _is_plain(value) else b""
    except (
        RecursionError,
        ValueError,
    ):  # a list that holds itself, a lone surrogate, an integer of 5,000 digits
        data = b""
    if not data:
        data = signed(_pickled(value, column, serializer), job_name=job_name, column=column)
    if len(data) > max_bytes:
        raise PayloadError(f"{len(data):,} bytes and PEASY_MAX_PAYLOAD is {max_bytes:,}")
    return data


def loads(data: bytes | memoryview, *, job_name: str, column: str, serializer: str) -> Any:
    """The value that `dumps` wrote. Raises `PayloadRefused` for bytes that this site did not write here."""
    data = bytes(data)
    if data[:1] == JSON:
        try:
            value = _from_json(data[1:].decode())
        except (ValueError, RecursionError) as error:
            raise PayloadRefused(f"The stored {column} of this job are damaged: {error}.") from None
        if column != RESULT and type(value) is not (list if column == ARGS else dict):
            raise PayloadRefused(
                f"The stored {column} of this job are damaged: they are {type(value).__name__}."
            )
        return value
    if data[:1] != PICKLE:
        raise PayloadRefused(
            f"The stored {column} of this job are not in a format that peasy_jobs writes."
        )
    if serializer == "json":
        raise PayloadRefused(
            f'The stored {column} of this job are a pickle, and PEASY_SERIALIZER is "json".'
        )
    signature, _, pickled = data[1:].partition(b":")
    signer = _signer(job_name, column)
    keys = [signer.key, *signer.fallback_keys]
    if not any(constant_time_compare(signature, signer.signature(pickled, key)) for key in keys):
        raise PayloadRefused(
            f"The stored {column} of this job were not signed by this site for {job_name}, so they were not loaded."
        )
    return pickle.loads(pickled)  # noqa: S301  signed by this site for this function and column


def plain(data: bytes | memoryview | None) -> tuple[bool, Any]:
    """Whether this is JSON, and its value: what may be shown without loading a pickle."""
    data = b"" if data is None else bytes(data)
    try:
        return (True, _from_json(data[1:].decode())) if data[:1] == JSON else (False, None)
    except (ValueError, RecursionError):
        return False, None


def signed(pickled: bytes, *, job_name: str, column: str) -> bytes:
    """A pickle with this site's signature. Beside this module only the migration calls it, which trusts it once."""
    return PICKLE + _signer(job_name, column).signature(pickled).encode() + b":" + pickled


def text(value: object, limit: int) -> str:
    """`value` as text that every database can store, `limit` characters at most."""
    cut = str(value)[:limit].replace("\0", "\ufffd")
    return (
        cut if cut.isascii() else cut.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def json_text(value: object) -> str:
    """`value` as JSON text that every database can store. Raises `TypeError` or `ValueError` when it is not JSON."""
    return json.dumps(_storable(value), allow_nan=False)


def _storable(value: object) -> object:
    if isinstance(value, str):
        return text(value, len(value))
    if isinstance(value, dict):
        return {_storable(key): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value


def _signer(job_name: str, column: str) -> Signer:
    return Signer(salt=f"peasy_jobs.payloads:{column}:{job_name}")


def _is_plain(value: Any) -> bool:
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
    try:
        (pickle.Pickler if column == RESULT else _ArgumentPickler)(buffer, protocol=5).dump(value)
    except PayloadError:
        raise
    except (
        Exception,
        SystemExit,
    ) as error:  # pickling runs the value's own code, so anything can come out of it
        raise PayloadError(text(error, 200) or type(error).__name__) from error
    return buffer.getvalue()


class _ArgumentPickler(pickle.Pickler):
    """Refuses what would be out of date by the time the job runs: rows and requests, which Django lets be pickled."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Model):
            raise PayloadError("a model instance")
        if isinstance(value, QuerySet | HttpRequest):
            raise PayloadError("a queryset" if isinstance(value, QuerySet) else "a request")
        return NotImplemented
