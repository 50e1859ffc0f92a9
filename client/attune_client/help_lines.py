"""Where to find help: what a client shows when words speak of suicide, self-harm or harm to others.

    print(crisis_notice("IE"))

One text for all of them, calm and always the same, because nobody knows from words alone how it stands with somebody.
`help_lines.yaml` beside this file holds the numbers, by country. Nothing is stored or sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attune_client.protocol.errors import AttuneError

__all__ = [
    "HELP_LINES_FILE",
    "MAX_AGE",
    "CountryHelp",
    "HelpLine",
    "HelpLines",
    "HelpLinesError",
    "country_of_locale",
    "crisis_notice",
    "date_complaints",
    "load_help_lines",
]

HELP_LINES_FILE = Path(__file__).with_name("help_lines.yaml")
"""The help lines that ship with Attune."""

MAX_AGE = timedelta(days=365)
"""How long an entry may go unchecked."""

_OPENING = (
    "Some of these words speak of suicide, of hurting oneself, or of hurting somebody. They were found by a simple "
    "rule, and may mean nothing of the kind. But if it is like that for you, or for somebody near you, you need not "
    "be alone with it: talk to someone you trust, or to people who are there to listen."
)
_DANGER = "If anybody is in danger now, call {emergency}."
_CHECKED = "Last checked on {checked}. Numbers change; for other countries see {url}"

_ALIASES = {"UK": "GB"}
# In the order in which POSIX lets one stand before the other.
_LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")
_LOCALE = re.compile(r"[a-zA-Z]{2,3}[_-]([a-zA-Z]{2})(?:[.@].*)?")
_EU_EMERGENCY = "112"
_LINE_FIELDS = ("name", "contact", "languages", "url", "checked")
_COUNTRY_FIELDS = ("emergency", "lines")
_FIELDS = ("elsewhere", "european_union", "countries")


class HelpLinesError(AttuneError):
    """The file of the help lines cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class HelpLine:
    """One service: its name, how to reach it, the languages spoken, its page, and when this was last checked."""

    name: str
    contact: str
    languages: tuple[str, ...]
    url: str
    checked: date


@dataclass(frozen=True, slots=True)
class CountryHelp:
    """A country's emergency number, as it is to be read, and its help lines."""

    emergency: str
    lines: tuple[HelpLine, ...]


@dataclass(frozen=True, slots=True)
class HelpLines:
    """All of the file: help by country code, and `elsewhere` for all other countries."""

    countries: Mapping[str, CountryHelp]
    elsewhere: CountryHelp

    def of(self, country: str | None) -> CountryHelp:
        """The help of a country by its ISO 3166 code, in either case; `elsewhere` for one that is not in the file."""
        code = (country or "").strip().upper()
        return self.countries.get(_ALIASES.get(code, code), self.elsewhere)


def crisis_notice(country: str | None = None, path: Path | None = None) -> str:
    """The notice for somebody in a country (ISO 3166 code; None or unknown: for anywhere), lines of plain text.

    `path` is a file of help lines in place of the shipped one. Raises `HelpLinesError` when it cannot be used.
    """
    help_lines = load_help_lines(path)
    found = help_lines.of(country)
    oldest = min(line.checked for line in found.lines)
    return "\n".join(
        [
            _OPENING,
            *(f"  {line.name}: {line.contact} ({', '.join(line.languages)}), {line.url}" for line in found.lines),
            _DANGER.format(emergency=found.emergency),
            _CHECKED.format(checked=oldest.isoformat(), url=help_lines.elsewhere.lines[0].url),
        ]
    )


def country_of_locale(environment: Mapping[str, str]) -> str | None:
    """The country that the environment's locale names ("GB" of LANG=en_GB.UTF-8), or None where it names none."""
    chosen = next((environment[name] for name in _LOCALE_VARIABLES if environment.get(name)), "")
    named = _LOCALE.fullmatch(chosen)
    return named[1].upper() if named else None


def date_complaints(help_lines: HelpLines, today: date) -> list[str]:
    """What is wrong with the dates: entries checked after `today`, or longer than `MAX_AGE` before it."""
    return list(_complaints(help_lines, today))


def _complaints(help_lines: HelpLines, today: date) -> Iterator[str]:
    for code, country in {**help_lines.countries, "elsewhere": help_lines.elsewhere}.items():
        for line in country.lines:
            if line.checked > today:
                yield f"{code}, {line.name}: checked on {line.checked}, which is still to come"
            elif today - line.checked > MAX_AGE:
                yield f"{code}, {line.name}: not checked since {line.checked}"


@cache
def load_help_lines(path: Path | None = None) -> HelpLines:
    """The help lines from `path` or the shipped file, read once.

    Raises `HelpLinesError`, naming the country and the field, when a field is missing, unknown or malformed. Dates
    must be dates; how old they may be is for `date_complaints`, so that a wrong clock never hides the notice.
    """
    source = path or HELP_LINES_FILE
    document = _read(source)
    elsewhere = _parse_country(document["elsewhere"], f"{source.name}, elsewhere")
    countries = document["countries"]
    _require(isinstance(countries, dict), source.name, "countries must be entries by country code")
    own = {
        _parse_code(code, source.name): _parse_country(entry, f"{source.name}, {code}")
        for code, entry in countries.items()
    }
    members = document["european_union"]
    _require(isinstance(members, list), source.name, "european_union must be a list of country codes")
    european = CountryHelp(_EU_EMERGENCY, elsewhere.lines)
    return HelpLines({_parse_code(code, source.name): european for code in members} | own, elsewhere)


def _read(source: Path) -> dict[str, Any]:
    import yaml  # here, so that whoever shows no notice needs no YAML

    try:
        document = yaml.safe_load(source.read_text(encoding="utf-8"))
    # A date that is none, 2026-02-30, is a ValueError of its own; so is text that is not UTF-8.
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise HelpLinesError(f"cannot read the help lines {source}: {error}") from error
    _require(_has(document, _FIELDS), source.name, f"must hold exactly {', '.join(_FIELDS)}")
    return dict(document)


def _parse_code(code: Any, where: str) -> str:
    well_formed = isinstance(code, str) and len(code) == 2 and code.isalpha() and code.isupper()
    _require(well_formed, where, f"a country is two capital letters, not {code!r} (quote NO)")
    return str(code)


def _parse_country(entry: Any, where: str) -> CountryHelp:
    _require(_has(entry, _COUNTRY_FIELDS), where, f"must have exactly {', '.join(_COUNTRY_FIELDS)}")
    lines = entry["lines"]
    _require(isinstance(lines, list) and bool(lines), where, "lines must be a list, and not empty")
    return CountryHelp(_text(entry, "emergency", where), tuple(_parse_line(line, where) for line in lines))


def _parse_line(line: Any, where: str) -> HelpLine:
    _require(_has(line, _LINE_FIELDS), where, f"a line must have exactly {', '.join(_LINE_FIELDS)}")
    name = _text(line, "name", where)
    where = f"{where}, {name}"
    languages = line["languages"]
    named = isinstance(languages, list) and bool(languages) and all(isinstance(one, str) and one for one in languages)
    _require(named, where, "languages must be a list of names")
    url = _text(line, "url", where)
    _require(urlsplit(url).scheme == "https" and bool(urlsplit(url).netloc), where, "url must begin with https://")
    checked = line["checked"]
    _require(type(checked) is date, where, f"checked must be a date such as 2026-11-26, not {checked!r}")
    return HelpLine(name, _text(line, "contact", where), tuple(languages), url, checked)


def _text(entry: Mapping[str, Any], field: str, where: str) -> str:
    value = entry[field]
    # An unquoted 000 would be the number 0.
    _require(isinstance(value, str) and bool(value.strip()), where, f"{field} must be a text; quote numbers")
    return " ".join(str(value).split())


def _has(value: Any, fields: tuple[str, ...]) -> bool:
    return isinstance(value, dict) and set(value) == set(fields)


def _require(holds: bool, where: str, rule: str) -> None:
    if not holds:
        raise HelpLinesError(f"{where}: {rule}")
