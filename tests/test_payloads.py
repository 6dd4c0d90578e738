"""Tests of payloads: values are restored exactly, and forged pickles are never loaded."""

import base64
import json
import math
import pickle
import struct
import threading
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import IntEnum
from itertools import permutations
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.core.signing import Signer
from django.test import AsyncRequestFactory, RequestFactory
from django.utils.functional import SimpleLazyObject
from hypothesis import example, given
from hypothesis import strategies as st

from peasy_jobs import payloads
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.payloads import ARGS, KWARGS, RESULT, PayloadError, PayloadRefused
from peasy_jobs.peasy_jobs import peasy
from peasy_jobs.store.values import Run
from peasy_jobs.workers import execution

NAME = "shop.jobs.export"
COLUMNS = (ARGS, KWARGS, RESULT)
detonated: list[bool] = []


class Text(str):
    pass


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


@dataclass
class Order:
    lines: list[Any]


class Bomb:
    """An object whose pickle runs code when it is loaded, as a forged pickle would."""

    def __reduce__(self) -> Any:
        return detonate, ()


def detonate() -> str:
    detonated.append(True)
    return "boom"


@pytest.fixture(autouse=True)
def no_explosion() -> Iterator[None]:
    detonated.clear()
    yield
    assert not detonated, "a forged pickle was loaded"


@peasy.job("export data")
def export(data: Any = None, *more: Any, **options: Any) -> Any:
    return data


@peasy.job("return something else")
def give(what: str) -> Any:
    return {
        "generator": (n for n in range(3)),
        "lambda": lambda: None,
        "lock": threading.Lock(),
        "text": "x" * 200,
    }[what]


def dumps(
    value: Any,
    column: str = RESULT,
    name: str = NAME,
    max_bytes: int = 10**6,
    serializer: str = "pickle",
) -> bytes:
    return payloads.dumps(
        value, job_name=name, column=column, max_bytes=max_bytes, serializer=serializer
    )


def loads(data: bytes, column: str = RESULT, name: str = NAME, serializer: str = "pickle") -> Any:
    return payloads.loads(data, job_name=name, column=column, serializer=serializer)


def comparable(value: Any) -> Any:
    """Return a value that is equal only for values of the same type and content.

    The values themselves cannot be compared: `1 == True == 1.0`, `0.0 == -0.0` and `nan != nan`.
    """
    kind = type(value)
    if isinstance(value, float):
        return kind, "nan" if math.isnan(value) else struct.pack("d", value)
    if isinstance(value, dict):
        return kind, [(comparable(key), comparable(item)) for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return kind, sorted(map(repr, map(comparable, value)))
    if isinstance(value, list | tuple):
        return kind, [comparable(item) for item in value]
    return kind, value


texts = st.text(st.characters(exclude_categories=[]))  # lone surrogates and NUL included
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    texts.map(Text),
    st.binary(),
    st.binary().map(bytearray),
    st.decimals(allow_nan=False),
    st.datetimes(timezones=st.none() | st.just(UTC)),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
    st.complex_numbers(allow_nan=False),
    st.just(Colour.RED),
)
keys = st.one_of(
    st.none(), st.booleans(), st.integers(), texts, texts.map(Text), st.binary(), st.tuples(texts)
)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(texts, inner, max_size=4).map(OrderedDict),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
        st.builds(Point, inner, inner),
    ),
)


@given(anything)
@example(1e22)
@example(-0.0)
@example(math.nan)
@example(-math.inf)
@example({"z": 1, "a": 2})
@example({1: "an integer", "1": "a text"})
@example("\ud83d\ude00 in two halves \ud83d\ude00"[:-1])
@example("a\0b")
@example((1, [2, (3,)]))
def test_a_value_is_restored_with_the_same_types(value: Any) -> None:
    for stored, column in ((value, RESULT), ([value], ARGS), ({"value": value}, KWARGS)):
        assert comparable(loads(dumps(stored, column), column)) == comparable(stored)


def test_an_integer_of_five_thousand_digits_is_restored() -> None:
    assert (loads(dumps(10**5000)) == 10**5000) is True  # pytest could not print it


def test_an_object_of_a_class_of_the_site_is_restored() -> None:
    assert loads(dumps(Order([Point(1, 2)]))) == Order([Point(1, 2)])


def test_a_list_that_contains_itself_is_restored() -> None:
    value: list[Any] = [1]
    value.append(value)
    loaded = loads(dumps(value))
    assert loaded[0] == 1
    assert loaded[1] is loaded


@given(plain)
@example(1e22)
@example({"ключ": ["\0", -0.0, 2**70]})
def test_a_value_that_json_restores_exactly_is_stored_as_json(value: Any) -> None:
    data = dumps(value, serializer="json")
    assert data[:1] == b"J"
    assert comparable(json.loads(data[1:])) == comparable(value)
    assert data == dumps(value), (
        "the serializer setting does not change how plain values are stored"
    )


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1: 2},
        {Text("a"): 1},
        OrderedDict(a=1),
        Text("a"),
        Colour.RED,
        math.nan,
        math.inf,
        "\ud800",
        {1, 2},
        b"bytes",
        Decimal("1.0"),
        datetime(2024, 2, 29, tzinfo=UTC),
        date(2024, 2, 29),
        timedelta(1),
        UUID(int=1),
        [[{"deep": (1,)}]],
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_value_that_json_would_change_is_pickled_or_refused(value: Any) -> None:
    assert dumps(value)[:1] == b"P"
    assert comparable(loads(dumps(value))) == comparable(value)
    with pytest.raises(
        PayloadError, match='only plain JSON values can be stored while PEASY_SERIALIZER is "json"'
    ):
        dumps(value, serializer="json")


def test_a_pickle_that_this_site_signed_is_loaded() -> None:
    # Otherwise the tests below would pass with a pickle that never runs code.
    assert loads(dumps(Bomb())) == "boom"
    assert detonated
    detonated.clear()


def test_a_pickle_is_refused_if_the_serializer_is_json() -> None:
    with pytest.raises(
        PayloadRefused,
        match="^The stored results of this job are a pickle, and PEASY_SERIALIZER is",
    ):
        loads(dumps(Bomb()), serializer="json")


def signed(pickled: bytes, key: str) -> bytes:
    signer = Signer(key=key, salt=f"peasy_jobs.payloads:{RESULT}:{NAME}")
    return b"P" + signer.signature(pickled).encode() + b":" + pickled


FORGED: dict[str, Callable[[bytes, bytes], bytes]] = {
    # The functions receive a pickle and its payload as this site stores it, and return what an
    # attacker wrote to the table.
    "bare": lambda bare, stored: bare,
    "without a signature": lambda bare, stored: b"P" + bare,
    "with an empty signature": lambda bare, stored: b"P:" + bare,
    "signed with another key": lambda bare, stored: signed(bare, "another key"),
    "signed with an empty salt": lambda bare, stored: (
        b"P" + Signer(salt="-").signature(bare).encode() + b":" + bare
    ),
    "with a signature cut short": lambda bare, stored: b"P" + stored[1:20] + b":" + bare,
    "with a signature in other letters": lambda bare, stored: (
        b"P" + stored[1:44].swapcase() + stored[44:]
    ),
    "with a signature that is not text": lambda bare, stored: b"P" + b"\xff" * 43 + b":" + bare,
    "cut short": lambda bare, stored: stored[:-1],
    "with one more byte": lambda bare, stored: stored + b".",
    "with one byte changed": lambda bare, stored: stored.replace(b"detonate", b"detonatf"),
    "with the signature of another pickle": lambda bare, stored: (
        dumps((1,)).partition(b":")[0] + b":" + bare
    ),
    "with the pickle in base64": lambda bare, stored: b"P" + base64.b64encode(bare),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_pickle_is_refused_and_not_loaded(forge: Callable[[bytes, bytes], bytes]) -> None:
    bare = pickle.dumps(Bomb())
    forged = forge(bare, dumps(Bomb()))
    with pytest.raises(PayloadRefused, match="^The stored results of this job "):
        loads(forged)


def test_the_forgeries_are_signed_in_the_way_that_is_checked() -> None:
    # Otherwise "signed with another key" might be refused only for its format.
    pickled = pickle.dumps((1,), protocol=5)
    assert signed(pickled, django_settings.SECRET_KEY) == dumps((1,))


@pytest.mark.parametrize("column", COLUMNS)
def test_a_pickle_is_loaded_in_the_column_it_was_written_for(column: str) -> None:
    assert loads(dumps((1, 2), column), column) == (1, 2)


@pytest.mark.parametrize(("written", "read"), [*permutations(COLUMNS, 2)])
def test_a_pickle_is_refused_in_another_column(written: str, read: str) -> None:
    data = dumps((1, 2), written)
    with pytest.raises(
        PayloadRefused, match=f"The stored {read} of this job were not signed by this site"
    ):
        loads(data, read)


def test_a_pickle_moved_to_another_job_function_is_refused_and_not_loaded() -> None:
    with pytest.raises(PayloadRefused) as refused:
        loads(dumps(Bomb()), name="shop.jobs.delete")
    assert str(refused.value) == (
        "The stored results of this job were not signed by this site for shop.jobs.delete, "
        "so they were not loaded. If SECRET_KEY was changed, "
        "add the old key to SECRET_KEY_FALLBACKS."
    )


def test_a_replaced_key_is_accepted_while_it_is_a_fallback(settings: Any) -> None:
    settings.SECRET_KEY = "the old key"
    old = dumps((1, 2))
    bomb = dumps(Bomb())
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = (
        "the new key",
        ["another old key", "the old key"],
    )
    assert loads(old) == (1, 2)
    assert dumps((1, 2)) != old, "new payloads are signed with the new key"
    settings.SECRET_KEY_FALLBACKS = ["another old key"]
    with pytest.raises(PayloadRefused):
        loads(old)
    with pytest.raises(PayloadRefused):
        loads(bomb)


def test_a_memoryview_as_postgresql_returns_it_is_loaded() -> None:
    assert loads(memoryview(dumps((1, 2)))) == (1, 2)  # PostgreSQL
    assert loads(memoryview(dumps([1, 2]))) == [1, 2]


DEEP = 100_000
DAMAGED = [
    b"",
    b"J",
    b"J{",
    b"J\xff\xfe",
    b'J"\\ud8',
    b"Jnul",
    b"J1 2",
    b"J" + b"[" * DEEP,
    b"J" + b"[" * DEEP + b"]" * DEEP,
    b"J" + b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b"J" + b"9" * 5000,
    b"P",
    b"P:",
    b"X",
    b"\x80\x05N.",
]


@pytest.mark.parametrize("data", DAMAGED, ids=lambda data: f"{data[:9]!r} {data[-9:]!r}")
def test_damaged_data_is_refused(data: bytes) -> None:
    with pytest.raises(PayloadRefused, match="^The stored results of this job "):
        loads(data)


@given(
    st.sampled_from(
        [b"", b"J", b"P", b"P:", b"J[", b'J"', b"J{", dumps((1,))[:44], dumps((1,))[:45]]
    ),
    st.binary(),
)
def test_random_bytes_are_refused_unless_they_are_json(start: bytes, rest: bytes) -> None:
    try:
        value = loads(start + rest)
    except PayloadRefused:
        return
    assert (start + rest)[:1] == b"J", "only data that is marked as JSON may be loaded"
    assert value is None or isinstance(value, int | float | str | list | dict)


@given(st.integers(0, 200), st.integers(1, 255), st.sampled_from(["text", ("a", "tuple")]))
def test_a_pickle_with_a_flipped_bit_is_never_loaded(place: int, flip: int, value: Any) -> None:
    data = bytearray(dumps(value))
    data[place % len(data)] ^= flip
    try:
        loaded = loads(bytes(data))
    except PayloadRefused:
        return
    assert type(loaded) is not tuple


@pytest.mark.parametrize(
    ("column", "data", "kind"),
    [
        (ARGS, b"J5", "int"),
        (ARGS, b'J"text"', "str"),
        (ARGS, b'J{"a":1}', "dict"),
        (KWARGS, b"Jnull", "NoneType"),
    ],
)
def test_json_of_another_type_is_refused_as_arguments(column: str, data: bytes, kind: str) -> None:
    assert type(loads(data)).__name__ == kind, "it is a valid result"
    with pytest.raises(
        PayloadRefused, match=f"^The stored {column} of this job are damaged: they are {kind}.$"
    ):
        loads(data, column)


# The sizes


def test_a_payload_of_exactly_the_largest_size_is_accepted() -> None:
    size = len(dumps(["x" * 50]))
    assert dumps(["x" * 50], max_bytes=size)
    with pytest.raises(
        PayloadError, match=f"^{size} bytes are more than PEASY_MAX_PAYLOAD, which is {size - 1}$"
    ):
        dumps(["x" * 50], max_bytes=size - 1)
    with pytest.raises(PayloadError, match="bytes are more than PEASY_MAX_PAYLOAD, which is 50$"):
        dumps((b"x" * 50,), max_bytes=50)


def refusal(*args: Any, **kwargs: Any) -> str:
    """Return the error message of a call of `export`, which may not use the database."""
    with pytest.raises(PayloadError) as refused:
        export(*args, **kwargs)
    assert isinstance(refused.value, ValueError)
    return str(refused.value)


def test_an_argument_of_50_mb_is_refused_with_the_setting_and_the_remedy() -> None:
    assert refusal("x" * 50_000_000) == (
        "Cannot enqueue \"export data\": argument 'data' (str) cannot be stored: "
        "50,000,003 bytes are more than PEASY_MAX_PAYLOAD, which is 10,485,760. "
        "Store the data first, in a file or a row, and pass its path or primary key."
    )


def test_peasy_max_payload_applies_to_keyword_arguments(settings: Any) -> None:
    settings.PEASY_MAX_PAYLOAD = 100
    assert "argument 'note' (bytes) cannot be stored: " in refusal(1, size=2, note=b"x" * 100)


def test_arguments_that_are_too_large_together_are_refused(settings: Any) -> None:
    settings.PEASY_MAX_PAYLOAD = 100
    assert refusal("x" * 60, "y" * 60) == (
        'Cannot enqueue "export data": its arguments cannot be stored together: '
        "128 bytes are more than PEASY_MAX_PAYLOAD, which is 100. "
        "Store the data first, in a file or a row, and pass its path or primary key."
    )


def result_error(what: str) -> str:
    args = payloads.dumps(
        [what], job_name=give.job_name, column=ARGS, max_bytes=1000, serializer="json"
    )
    outcome = execution.run(Run(1, 1, give.job_name, args, None, 1), lambda report: None)
    assert outcome.error and outcome.result is None
    return outcome.error["message"]


def test_peasy_max_payload_applies_to_results(settings: Any) -> None:
    settings.PEASY_MAX_PAYLOAD = 100
    assert result_error("text") == (
        "The job finished, but its result (str) cannot be stored: 203 bytes are more than "
        "PEASY_MAX_PAYLOAD, which is 100. "
        "Return plain values."
    )


@pytest.mark.parametrize(
    ("what", "kind"), [("generator", "generator"), ("lambda", "function"), ("lock", "lock")]
)
def test_the_error_of_a_result_that_cannot_be_stored_says_what_to_return(
    what: str, kind: str
) -> None:
    message = result_error(what)
    assert message.startswith(f"The job finished, but its result ({kind}) cannot be stored: ")
    assert message.endswith(". Return plain values.")


# What to pass instead

PLAIN = "Pass plain values, such as a primary key."
PRIMARY_KEY = "Pass its primary key and load it in the job, which then sees it as it is by then."
PRIMARY_KEYS = (
    "Pass the primary keys and load them in the job, which then sees the rows as they are by then."
)


def local_object() -> object:
    class Local:
        pass

    return Local()


class Unwilling:
    def __reduce__(self) -> Any:
        raise RuntimeError("not today")


UNSTORABLE: dict[str, tuple[Callable[[], Any], str, str]] = {
    "a request": (lambda: RequestFactory().get("/"), "WSGIRequest", PLAIN),
    "an async request": (lambda: AsyncRequestFactory().get("/"), "ASGIRequest", PLAIN),
    "a generator": (lambda: (n for n in range(3)), "generator", "Pass a list of plain values."),
    "a lambda": (
        lambda: lambda: None,
        "function",
        "Pass the name of what to do, and look it up in the job.",
    ),
    "a model instance": (lambda: User(pk=7), "User", PRIMARY_KEY),
    "a lazy model instance": (
        lambda: SimpleLazyObject(lambda: User(pk=7)),
        "SimpleLazyObject",
        PRIMARY_KEY,
    ),
    "a model instance in a list": (lambda: [1, [User(pk=7)]], "list", PRIMARY_KEY),
    "a model instance in an object": (lambda: Order([User(pk=7)]), "Order", PRIMARY_KEY),
    "a queryset": (lambda: User.objects.filter(pk=7), "QuerySet", PRIMARY_KEYS),
    "a queryset in a dictionary": (lambda: {"users": User.objects.all()}, "dict", PRIMARY_KEYS),
    "an open file": (lambda: Path(__file__).open(), "TextIOWrapper", PLAIN),  # noqa: SIM115
    "a lock": (lambda: threading.Lock(), "lock", PLAIN),
    "an object of a local class": (local_object, "Local", PLAIN),
    "an object that refuses to be pickled": (Unwilling, "Unwilling", PLAIN),
}


@pytest.mark.parametrize(("make", "kind", "advice"), UNSTORABLE.values(), ids=UNSTORABLE)
def test_an_argument_that_cannot_be_stored_is_named_with_what_to_pass_instead(
    make: Any, kind: str, advice: str
) -> None:
    value = make()
    try:
        start = f" ({kind}) cannot be stored: "
        for name, message in {
            "'data'": refusal(value),
            "number 3": refusal(1, 2, value),
            "'options'": refusal(1, two=2, options=value),
        }.items():
            assert message.startswith(f'Cannot enqueue "export data": argument {name}{start}')
            assert message.endswith(f". {advice}")
    finally:
        if hasattr(value, "close"):
            value.close()


@pytest.mark.parametrize(
    "make", [tuple, RequestFactory().get, lambda _: User(pk=7)], ids=["tuple", "request", "row"]
)
def test_peasy_serializer_json_refuses_other_values_when_they_are_enqueued(
    settings: Any, make: Callable[[str], Any]
) -> None:
    settings.PEASY_SERIALIZER = "json"
    expected = (
        'cannot be stored: only plain JSON values can be stored while PEASY_SERIALIZER is "json". '
    )
    assert expected in refusal(make("/"))


@pytest.mark.django_db
def test_peasy_serializer_json_refuses_pickles_that_were_stored_before(settings: Any) -> None:
    job = export((1, 2))
    settings.PEASY_SERIALIZER = "json"
    job = PeasyJobQueue.objects.get(pk=job.pk)  # loading the row decodes nothing
    with pytest.raises(PayloadRefused, match='PEASY_SERIALIZER is "json"'):
        _ = job.args


@pytest.mark.django_db
@pytest.mark.parametrize(
    "value", [["plain", 1e22, "\0"], ("not", Decimal("1.50"), b"\0\xff", "\ud800")]
)
def test_arguments_are_restored_from_the_database(value: Any) -> None:
    job = PeasyJobQueue.objects.get(pk=export(value, 2, size=value).pk)
    assert comparable(job.args) == comparable((value, 2))
    assert comparable(job.kwargs) == comparable({"size": value})


@pytest.mark.django_db
def test_a_forged_row_can_be_listed_but_its_payloads_are_refused() -> None:
    job = export(1)
    bomb = payloads.PICKLE + pickle.dumps(Bomb())
    PeasyJobQueue.objects.filter(pk=job.pk).update(
        args_data=bomb, kwargs_data=bomb, result_data=bomb
    )
    [job] = PeasyJobQueue.objects.all()
    for name in ("args", "kwargs", "result"):
        with pytest.raises(
            PayloadRefused, match="not signed by this site for tests.test_payloads.export"
        ):
            getattr(job, name)
