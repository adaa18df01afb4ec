"""The forms of all pages with mutated fields, and the pages with mutated addresses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from api.web.pages import PAGES
from tests.api.test_forms import Form, forms_of
from tests.api.web.payloads import PAYLOADS
from tests.fuzz.service import Service, service
from tests.fuzz.tally import Tally

COUNT = 65_000
SLICE = 300
# Numbers, dates and ids that parsers of Python read in ways that their callers do not expect
ODD = (
    *(
        "--5",
        "-",
        "+5",
        " 7 ",
        "1_000",
        "٣",
        "²",
        "1e400",
        "-1e400",
        "nan",
        "inf",
        "0x10",
        "010",
        "9" * 4_400,
        "1e-400",
    ),
    *("", " ", "\0", "\ud800", "\U0001f600", "\x1b[31m", "a" * 70_000, "[" * 20_000, "{", "}", "null", "true", "[]"),
    *("a,b", ",,,", "1:2", "1..9", "::1", "http://[", "//", "../..", "%", "%%", "%zz", "&", "=", ";", "\r\n", "\\"),
    *("~", "/", "~1", "~" * 9_000, "00000000-0000-7000-8000-000000000000", "none", "2147483648", "-2147483649"),
    *("9223372036854775808", "18446744073709551616", "0.1, 0.2", "loss.temperature", "linear", "0.", ".5", "1e9999"),
    *("- a\n- b", "a: 1", "&a [*a]", "!!python/object:os.system", "2026-13-45", "1,2,3", "0" * 300, "\ufeff1"),
)
_ENCODINGS = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
_QUERIES = ("q", "tag", "status", "kind", "cursor", "limit", "jobs", "metric", "x", "preset", "source", "token", "axis")
_QUERIES += ("epoch", "step", "keys", "protocol", "dataset", "sort", "page", "image", "smooth", "log", "job", "state")


def run(count: int, seed: int, tally: Tally) -> None:
    """Send `count` requests."""
    with service(tally) as served:
        addresses = _addresses(served)
        forms = [form for address in addresses for form in forms_of(served.client, address)]
        unique = list({form.kind: form for form in forms if form.action != "/sign-out"}.values())
        for each in served.cases(count, seed):
            generator = random.Random(each)
            if generator.random() < 0.3:
                _get(served, each, generator, generator.choice(PAGES).address)
            else:
                _post(served, each, generator, generator.choice(unique))


def _addresses(served: Service) -> list[str]:
    filled = []
    for page in PAGES:
        address = page.address
        for name, values in served.values.items():
            address = address.replace(f"{{{name}}}", values[0])
        filled.append(address)
    return filled


def _get(served: Service, seed: int, generator: random.Random, address: str) -> None:
    filled = address
    for name, values in served.values.items():
        value = (
            generator.choice(values)
            if generator.random() < 0.8
            else quote(_odd(generator)[:300], safe="", errors="replace")
        )
        filled = filled.replace(f"{{{name}}}", value)
    query = [(generator.choice(_QUERIES), _odd(generator)[:3_000]) for _ in range(generator.randrange(4))]
    text = urlencode(query, errors="surrogatepass")
    served.send(seed, f"GET {address}", "GET", f"{filled}?{text}", headers={"Accept": "text/html"})


def _post(served: Service, seed: int, generator: random.Random, form: Form) -> None:
    fields = [(name, values) for name, list_ in form.body(None).items() for values in list_]
    if form.buttons and generator.random() < 0.7:
        fields.append(generator.choice(form.buttons))
    for _ in range(generator.choice((0, 1, 1, 1, 2, 3, 8))):
        _mutate(generator, fields)
    if generator.random() < 0.8:
        content, kind = urlencode(fields, errors="surrogatepass").encode(), _ENCODINGS[0]
    else:
        content, kind = multipart(fields), _ENCODINGS[1]
    headers = {"Content-Type": kind, "Accept": generator.choice(("text/html", "*/*"))}
    served.send(seed, f"POST {form.kind}", "POST", form.action, content=content, headers=headers)


def _mutate(generator: random.Random, fields: list[tuple[str, str]]) -> None:
    place = generator.randrange(len(fields) + 1)
    choice = generator.random()
    if place == len(fields) or choice < 0.1:
        fields.append((_odd(generator)[:100], _odd(generator)))
    elif choice < 0.2:
        del fields[place]
    elif choice < 0.25:
        fields.append(fields[place])
    else:
        fields[place] = (fields[place][0], _odd(generator))


def _odd(generator: random.Random) -> str:
    return generator.choice(ODD if generator.random() < 0.7 else PAYLOADS)


def multipart(fields: Sequence[tuple[str, str]], boundary: str = "x") -> bytes:
    """Return a multipart body."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields
    ]
    return ("".join(parts) + f"--{boundary}--\r\n").encode(errors="surrogatepass")
