"""Formats: against Python's own parsers, and the official test suite with its exceptions named."""

import calendar
import datetime
import ipaddress
import json
import pathlib
import random

import pytest

module = pytest.importorskip("tokops.lib._grammar", reason="the grammar module is not built")

SUITE = pathlib.Path(__file__).parents[1] / "data/json_schema_test_suite/draft2020-12/optional/format"
LANGUAGES = module.Languages(256 << 20)

# Tests where the verdict is another. Which names a pattern's groups have is not regular.
OTHERWISE = {
    "an ECMA 262 named backreference \\k<name>",
}


def holds(name, text):
    return LANGUAGES.accepts(LANGUAGES.format(name), text.encode())


def suite():
    for path in sorted(SUITE.glob("*.json")):
        for group in json.loads(path.read_text()):
            name = group["schema"].get("format")
            if name in module.format_names():
                yield pytest.param(name, group, id=f"{path.stem}-{group['description'][:40]}")


@pytest.mark.parametrize(("name", "group"), list(suite()))
def test_suite(name, group):
    for test in group["tests"]:
        text = test["data"]
        if not isinstance(text, str) or test["description"] in OTHERWISE:
            continue
        if "hostname" in name and "xn--" in text.lower():
            assert not holds(name, text), test  # A-labels are left out
        else:
            assert holds(name, text) == test["valid"], test


def test_unknown_names():
    assert LANGUAGES.format("color") is None
    assert set(module.format_names()) >= {"date-time", "uri", "email", "regex"}


def test_dates():
    for year in (1, 4, 100, 400, 1900, 1999, 2000, 2024, 2100, 9999):
        for month in range(14):
            for day in range(33):
                text = f"{year:04}-{month:02}-{day:02}"
                valid = 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]
                assert holds("date", text) == valid, text
    for text in ("2020-1-01", "20200101", "2020-01-01T", "02020-01-01", "-2020-01-01", "2020-01-0১"):
        assert not holds("date", text)


def test_times():
    for hour in range(26):
        for minute in (0, 9, 59, 60):
            for tail, good in (
                ("Z", True),
                (":", False),
                ("+23:59", True),
                ("-24:00", False),
                ("+1:00", False),
            ):
                text = f"{hour:02}:{minute:02}:07{tail}"
                assert holds("time", text) == (hour < 24 and minute < 60 and good), text
    for text in ("01:02:03", "01:02Z", "01:02:03.Z", "01:02:03,5Z", "1:02:03Z", "01:02:03z+01:00"):
        assert not holds("time", text), text
    assert holds("time", "01:02:03.000000000001z")


def test_leap_seconds_are_the_last_of_a_day_in_utc():
    rng = random.Random(0)
    for _ in range(2000):
        hour, minute, zone = rng.randrange(24), rng.randrange(60), rng.choice("+-Z")
        offset = rng.randrange(1440)
        if rng.random() < 0.5:  # the right one
            offset = (hour * 60 + minute - 1439) * (1 if zone == "+" else -1) % 1440
        shift = 0 if zone == "Z" else offset if zone == "+" else -offset
        text = f"{hour:02}:{minute:02}:60" + rng.choice(["", ".5"])
        text += zone if zone == "Z" else f"{zone}{offset // 60:02}:{offset % 60:02}"
        assert holds("time", text) == ((hour * 60 + minute - shift) % 1440 == 1439), text
    assert holds("date-time", "2016-12-31T23:59:60Z")
    assert not holds("date-time", "2016-12-31 23:59:59Z")


def test_addresses():
    rng = random.Random(1)
    samples = """1.2.3.4 01.2.3.4 1.2.3 256.1.1.1 :: ::1 1:: 1:2:3:4:5:6:7:8 1:2:3:4:5:6:7:: ::2:3:4:5:6:7:8
        1::3:4:5:6:7:8 1:2:3:4:5:6:7:8:9 1::2::3 ::ffff:1.2.3.4 1:2:3:4:5:6:1.2.3.4 1:2:3:4:5:6:7:1.2.3.4 ::1.2.3.256
        12345:: :1 1: fe80::1 ::: ::g 1.2.3.4::""".split()  # noqa: SIM905
    for _ in range(3000):
        parts = [rng.choice(["", "0", "1f", "abcd", "12345", "1.2.3.4"]) for _ in range(rng.randint(1, 9))]
        samples.append(":".join(parts))
    for text in samples:
        for name, parse in (("ipv4", ipaddress.IPv4Address), ("ipv6", ipaddress.IPv6Address)):
            try:
                parse(text)
                valid = True
            except ValueError:
                valid = False
            assert holds(name, text) == valid, (name, text)
    assert not holds("ipv6", "fe80::1%eth0")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("uuid", ["2eb8aa08-AA98-11ea-b4aa-73b441d16380"], ["2eb8aa08aa9811eab4aa73b441d16380", "{0}", ""]),
        ("hostname", ["a", "a-b.c1", "A" * 63 + ".b", ".".join(["a" * 49] * 5) + ".b"],
         ["", "-a", "a-", "a..b", "a.", "a_b", "a" * 64, ".".join(["a" * 49] * 6)]),
        ("email", ["a@b", "a.b+c@d-e.fr", '"a b"@c', "a@[1.2.3.4]", "a@[IPv6:::1]"],
         ["a", "a@", "@b", "a..b@c", ".a@b", "a@b_c", "a@-b", "a@[1.2.3]", "a@[IPv6:1]", "a b@c", "é@b"]),
        ("idn-email", ["é@b", "a@ü.de"], ["é", "a@"]),
        ("uri", ["a:", "http://a/b?c#d", "urn:x:y", "mailto:a@b", "http://[::1]:80/", "file:///x"],
         ["", "a", "/a", "//a", "http://a b", "1a:b", "http://[::1", "http://a/%zz", "é:", "http://é"]),
        ("uri-reference", ["", "a", "/a", "//a/b", "?x", "#x", "a:b", "./a:b"], ["\\a", "a b", "#a#b", "%"]),
        ("iri", ["http://é/ü?x#y"], ["é", "http://é "]),
        ("iri-reference", ["é", "#é", ""], ["\\é", "é é"]),
        ("uri-template", ["http://a/{b}", "{+a,b*}", "{?x:3}", "é", ""], ["{", "}", "{a", "{a b}", "{a:0}", "%"]),
        ("json-pointer", ["", "/", "/a~0b~1c", "/é//"], ["a", "/~", "/~2", "#/a"]),
        ("relative-json-pointer", ["0", "1/a", "0#", "10/a~1"], ["", "/a", "-1/a", "01", "1#a", "1a"]),
        ("duration", ["P1D", "PT1H", "P1Y2M3DT4H5M6S", "P2W"],
         ["P", "PT", "P1", "P1DT", "P1W1D", "P1H", "PT1D", "P1Y1D"]),
        ("regex", ["", "([abc])+\\s+$", "^a{2,3}?b|c$", "(?:(?=x)(?<n>y))*", "[^\\]a-z]", "\\p{L}\\u{1F389}"],
         ["^(abc]", "(", "a)", "*", "[", "\\", "a**", "\\Z", "{"]),
    ],
)  # fmt: skip
def test_by_hand(name, good, bad):
    for text in good:
        assert holds(name, text), text
    for text in bad:
        assert not holds(name, text), text


def test_words_can_be_drawn_from_every_format():
    for name in module.format_names():
        lang = LANGUAGES.format(name)
        assert LANGUAGES.accepts(lang, LANGUAGES.shortest(lang)), name
        assert LANGUAGES.same(LANGUAGES.both([lang, LANGUAGES.text()]), lang) or name.startswith("i"), name
    now = datetime.datetime.now(datetime.timezone.utc)
    assert holds("date-time", now.isoformat())
