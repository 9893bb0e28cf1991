"""Trace context by the W3C's own cases: what is read, what is dropped, and what is passed on."""

from __future__ import annotations

import string

import pytest

from wsgigate.telemetry.trace_context import (
    RemoteParent,
    TraceContext,
    bounded_baggage,
    ratio_bound,
    read_b3,
    read_traceparent,
    read_tracestate,
    sampler_ratio,
)

TRACE = "12345678901234567890123456789012"
SPAN = "1234567890123456"
SENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (SENT, 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-03", 3),
        (f"00-{TRACE}-{SPAN}-02", 2),
        (f"00-{TRACE}-{SPAN}-ff", 3),  # unknown flags are ignored
        (f" {SENT}", 1),
        (f"\t{SENT}", 1),
        (f"{SENT} ", 1),
        (f"\t {SENT} \t", 1),
        (f"cc-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
        (f"01-{TRACE}-{SPAN}-09", 1),
    ],
)
def test_a_valid_traceparent_is_read(text, flags):
    assert read_traceparent(text) == RemoteParent(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"{SENT},{SENT}",  # several fields
        f"{SENT}, 00-{TRACE[:-1]}1-{SPAN}-01",
        f"{SENT}.",
        f"{SENT}-what-the-future-will-be-like",
        f"{SENT}\n",
        f"cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like",
        f"cc-{TRACE}-{SPAN}-01what",
        f"ff-{TRACE}-{SPAN}-01",
        f".0-{TRACE}-{SPAN}-01",
        f"0.-{TRACE}-{SPAN}-01",
        f"CC-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"0000-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-.{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE[:-1]}.-{SPAN}-01",
        f"00-{'A' * 32}-{SPAN}-01",
        f"00-{TRACE}3-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-.{SPAN[1:]}-01",
        f"00-{TRACE}-{SPAN[:-1]}.-01",
        f"00-{TRACE}-{'B' * 16}-01",
        f"00-{TRACE}-{SPAN}7-01",
        f"00-{TRACE}-{SPAN[:-1]}-01",
        f"00-{TRACE}-{SPAN}-.0",
        f"00-{TRACE}-{SPAN}-0.",
        f"00-{TRACE}-{SPAN}-0A",
        f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{'１' * 32}-{SPAN}-01",  # a digit, but not of ASCII
    ],
)
def test_a_malformed_traceparent_is_dropped(text):
    assert read_traceparent(text) is None


@pytest.mark.parametrize(
    ("sampled", "random", "flags"),
    [(False, False, "00"), (True, False, "01"), (False, True, "02"), (True, True, "03")],
)
def test_the_field_for_a_service_is_of_version_00(sampled, random, flags):
    trace = TraceContext(TRACE, SPAN, sampled, random)
    assert trace.traceparent() == f"00-{TRACE}-{SPAN}-{flags}"
    assert trace.traceparent("a" * 16) == f"00-{TRACE}-{'a' * 16}-{flags}"
    parent = read_traceparent(trace.traceparent())
    assert parent == RemoteParent(TRACE, SPAN, int(flags, 16))


KEY = string.ascii_lowercase + string.digits + "_-*/"
VALUE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")
MEMBERS = [f"bar{number:02}={number:02}" for number in range(1, 34)]


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("foo=1", "foo=1"),
        ("foo=1,bar=2", "foo=1,bar=2"),
        ("foo=1,bar=2,rojo=1,congo=2,baz=3", "foo=1,bar=2,rojo=1,congo=2,baz=3"),
        ("foo=1,", "foo=1"),  # an empty field beside another
        (",foo=1", "foo=1"),
        ("foo=1 \t , \t bar=2, \t baz=3", "foo=1,bar=2,baz=3"),
        ("foo=1\t \t,\t \tbar=2,\t \tbaz=3", "foo=1,bar=2,baz=3"),
        ("\t foo=1 \t", "foo=1"),
        (f"{KEY}={VALUE}", f"{KEY}={VALUE}"),
        (f"{KEY}@a-z0-9_-*/={VALUE}", f"{KEY}@a-z0-9_-*/={VALUE}"),
        ("0tenant@vendor=1", "0tenant@vendor=1"),
        (",".join(MEMBERS[:32]), ",".join(MEMBERS[:32])),
        (f"foo=1,{'z' * 256}=1", f"foo=1,{'z' * 256}=1"),
        (f"foo=1,{'t' * 241}@{'v' * 14}=1", f"foo=1,{'t' * 241}@{'v' * 14}=1"),
    ],
)
def test_a_valid_tracestate_is_passed_on(text, passed):
    assert read_tracestate(text) == passed


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "foo",
        "=1",
        "foo=1,foo=1",
        "foo=1,foo=2",
        "foo =1",
        "FOO=1",
        "foo.bar=1",
        "0foo=1",
        "foo@=1,bar=2",
        "@foo=1,bar=2",
        "foo@@bar=1,bar=2",
        "foo@bar@baz=1,bar=2",
        ",".join(MEMBERS),
        f"foo=1,{'z' * 257}=1",
        f"foo=1,{'t' * 242}@v=1",
        f"foo=1,t@{'v' * 15}=1",
        f"foo={'v' * 257}",
        "foo=bar=baz",
        "foo=,bar=3",
        "foo=b\xe4r",
        "foo=1\r\nX-User: root",
        "foo=1\x00",
    ],
)
def test_a_malformed_tracestate_is_dropped(text):
    assert read_tracestate(text) == ""


def test_a_long_tracestate_loses_its_long_members_first_and_then_its_last():
    long = f"long={'x' * 200}"
    short = [f"k{number}={'v' * 40}" for number in range(20)]
    passed = read_tracestate(",".join([short[0], long, *short[1:]]))
    assert passed == ",".join(short[:11])
    assert len(passed) <= 512
    assert read_tracestate("a=1," * 20_000) == ""


def test_baggage_is_passed_on_unchanged_up_to_the_bounds_of_its_specification():
    assert bounded_baggage("user=1; p=2 ,\ttenant=%20x") == "user=1; p=2 ,\ttenant=%20x"
    most = ",".join(f"k{number}=1" for number in range(64))
    assert bounded_baggage(most) == most
    assert bounded_baggage(f"{most},k64=1") == ""
    assert bounded_baggage("k=" + "v" * 8190) == "k=" + "v" * 8190
    assert bounded_baggage("k=" + "v" * 8191) == ""


MULTI = {"HTTP_X_B3_TRACEID": TRACE, "HTTP_X_B3_SPANID": SPAN}


@pytest.mark.parametrize(
    ("fields", "parent"),
    [
        ({}, None),
        ({"HTTP_B3": f"{TRACE}-{SPAN}"}, RemoteParent(TRACE, SPAN, None)),
        ({"HTTP_B3": f"{TRACE}-{SPAN}-1"}, RemoteParent(TRACE, SPAN, 1)),
        ({"HTTP_B3": f"{TRACE}-{SPAN}-0-{SPAN}"}, RemoteParent(TRACE, SPAN, 0)),
        ({"HTTP_B3": f"{TRACE}-{SPAN}-d"}, RemoteParent(TRACE, SPAN, 1)),
        ({"HTTP_B3": f"{SPAN}-{SPAN}-1"}, RemoteParent("0" * 16 + SPAN, SPAN, 1)),
        ({"HTTP_B3": f"{'AB' * 16}-{'CD' * 8}-1"}, RemoteParent("ab" * 16, "cd" * 8, 1)),
        ({"HTTP_B3": "0"}, None),
        ({"HTTP_B3": f"{TRACE}-{SPAN}-2"}, None),
        ({"HTTP_B3": f"{TRACE}-{SPAN}-1-x"}, None),
        ({"HTTP_B3": f"{TRACE}-{SPAN}x1"}, None),
        ({"HTTP_B3": f"{'0' * 32}-{SPAN}-1"}, None),
        ({"HTTP_B3": f"{TRACE}-{'0' * 16}-1"}, None),
        ({"HTTP_B3": f"{TRACE}-{SPAN}-1,{TRACE}-{SPAN}-1"}, None),
        (MULTI, RemoteParent(TRACE, SPAN, None)),
        ({**MULTI, "HTTP_X_B3_SAMPLED": "1"}, RemoteParent(TRACE, SPAN, 1)),
        ({**MULTI, "HTTP_X_B3_SAMPLED": "true"}, RemoteParent(TRACE, SPAN, 1)),
        ({**MULTI, "HTTP_X_B3_SAMPLED": "0"}, RemoteParent(TRACE, SPAN, 0)),
        ({**MULTI, "HTTP_X_B3_FLAGS": "1"}, RemoteParent(TRACE, SPAN, 1)),
        ({**MULTI, "HTTP_X_B3_SAMPLED": "maybe"}, None),
        ({"HTTP_X_B3_TRACEID": TRACE}, None),
        ({"HTTP_X_B3_SAMPLED": "1"}, None),
    ],
)
def test_b3_fields_are_read_in_both_forms(fields, parent):
    assert read_b3(fields.get) == parent


def test_the_ratio_decides_by_the_right_half_of_the_trace_id():
    assert ratio_bound(0) == 0
    assert ratio_bound(1) == 1 << 64
    assert ratio_bound(0.25) == 1 << 62


@pytest.mark.parametrize(
    ("name", "argument", "ratio"),
    [
        ("", "", None),
        ("always_on", "", 1.0),
        ("parentbased_always_on", "", 1.0),
        ("always_off", "", 0.0),
        ("parentbased_always_off", "0.5", 0.0),
        ("traceidratio", "0.25", 0.25),
        ("parentbased_traceidratio", "0.1", 0.1),
        (" Parentbased_TraceIdRatio ", "", 1.0),
        ("traceidratio", "1.5", None),
        ("traceidratio", "nan", None),
        ("traceidratio", "much", None),
        ("jaeger_remote", "", None),
    ],
)
def test_the_sampler_of_the_environment_gives_a_ratio(name, argument, ratio):
    assert sampler_ratio(name, argument) == ratio
