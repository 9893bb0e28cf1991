"""XML as Eureka's clients write it, and as attackers do."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.registry.compat.eureka_format import (
    MOST_DEPTH,
    MOST_ELEMENTS,
    XmlError,
    read_xml,
    write_xml,
)

BOMB = b"""<!DOCTYPE i [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<i>&b;</i>"""


@pytest.mark.parametrize(
    ("data", "root"),
    [
        (b"<i/>", ("i", "")),
        (b"<i>  text </i>", ("i", "text")),
        (
            b'<i><port enabled="true">80</port></i>',
            ("i", {"port": {"@enabled": "true", "$": "80"}}),
        ),
        (b"<i><m><a>1</a><b.c-d>2</b.c-d></m></i>", ("i", {"m": {"a": "1", "b.c-d": "2"}})),
        (b'<i><m class="empty"/></i>', ("i", {"m": {"@class": "empty"}})),
        (b"<i>&lt;&amp;&#x41;<![CDATA[<x>]]></i>", ("i", "<&A<x>")),
        ("<i>größer</i>".encode(), ("i", "größer")),
        (b'<?xml version="1.0"?><!-- a --><i><!-- b -->1<?pi ?></i>', ("i", "1")),
    ],
)
def test_elements_are_read_as_texts_or_mappings(data: bytes, root: object) -> None:
    assert read_xml(data) == root


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not well-formed"),
        (b"<i>", "not well-formed"),
        (b"<i></j>", "not well-formed"),
        (b"<i/><j/>", "not well-formed"),
        (b"<i>\xff</i>", "not well-formed"),
        (b'<i a="1" a="2"/>', "not well-formed"),
        (b"<i>&unknown;</i>", "not well-formed"),
        (b"<i>&#0;</i>", "not well-formed"),
        ("<i>größer</i>".encode("latin-1"), "not well-formed"),
        ('<?xml version="1.0" encoding="utf-16"?><i/>'.encode("utf-16"), "not well-formed"),
        (b"<!DOCTYPE i><i/>", "document type"),
        (b'<!DOCTYPE i SYSTEM "http://127.0.0.1:1/i.dtd"><i/>', "document type"),
        (b'<!DOCTYPE i [<!ENTITY x SYSTEM "file:///etc/passwd">]><i>&x;</i>', "document type"),
        (b'<!DOCTYPE i [<!ENTITY % p SYSTEM "file:///x"> %p;]><i/>', "document type"),
        (BOMB, "document type"),
        (b"<i><a/><a/></i>", "two elements 'a'"),
        (b"<a>" * (MOST_DEPTH + 1) + b"</a>" * (MOST_DEPTH + 1), f"more than {MOST_DEPTH} deep"),
        (
            b"<i>" + b"".join(b"<a%d/>" % n for n in range(MOST_ELEMENTS)) + b"</i>",
            f"more than {MOST_ELEMENTS} elements",
        ),
        (
            b"<i " + b" ".join(b'a%d=""' % n for n in range(MOST_ELEMENTS)) + b"/>",
            f"more than {MOST_ELEMENTS} elements",
        ),
    ],
)
def test_dangerous_or_ambiguous_xml_is_rejected(data: bytes, why: str) -> None:
    with pytest.raises(XmlError, match=why):
        read_xml(data)


def test_the_bounds_themselves_are_allowed() -> None:
    read_xml(b"<a>" * MOST_DEPTH + b"</a>" * MOST_DEPTH)
    read_xml(b"<i>" + b"".join(b"<a%d/>" % n for n in range(MOST_ELEMENTS - 1)) + b"</i>")


@given(st.binary())
def test_any_bytes_are_read_or_rejected(data: bytes) -> None:
    try:
        read_xml(data)
    except XmlError:
        pass


def test_lists_are_written_as_elements_of_one_name() -> None:
    written = write_xml("all", {"one": [{"@k": 'a"<', "$": 1}, "2"], "not a name": "3", "z": []})
    assert written == (
        b'<?xml version="1.0" encoding="UTF-8"?><all><one k=\'a"&lt;\'>1</one><one>2</one></all>'
    )


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9.]{0,8}", fullmatch=True), st.text()))
def test_any_document_is_written_as_well_formed_xml(texts: dict[str, str]) -> None:
    root = ElementTree.fromstring(write_xml("m", texts))
    assert {child.tag for child in root} == set(texts)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9.]{0,8}", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn"])).map(str.strip),
        min_size=1,
    )
)
def test_written_xml_is_read_as_the_same_document(texts: dict[str, str]) -> None:
    assert read_xml(write_xml("m", texts)) == ("m", texts)
