"""The help lines: the shipped file, what a broken one says, and the notice.

Run: pytest tests/unit/test_help_lines.py
"""

import warnings
from copy import deepcopy
from datetime import date, timedelta

import pytest
import yaml

from attune_client.help_lines import (
    HELP_LINES_FILE,
    MAX_AGE,
    HelpLinesError,
    country_of_locale,
    crisis_notice,
    date_complaints,
    load_help_lines,
)

SHIPPED = yaml.safe_load(HELP_LINES_FILE.read_text(encoding="utf-8"))


def written(tmp_path, change):
    """The shipped file with a change, or with a text in place of it."""
    document = deepcopy(SHIPPED)
    text = change(document)
    path = tmp_path / "lines.yaml"
    path.write_text(text if isinstance(text, str) else yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("country", "contact", "emergency"),
    [
        ("US", "call or text 988", "911"),
        ("ca", "call or text 988", "911"),
        ("GB", "call 116 123", "999"),
        ("uk", "call 116 123", "999"),
        ("IE", "call 116 123", "112 or 999"),
        ("AU", "call 13 11 14", "000"),
        ("FR", "call 3114", "112"),
        ("PL", "findahelpline.com", "112"),
        ("ZZ", "findahelpline.com", "your local emergency number"),
        (None, "findahelpline.com", "your local emergency number"),
        ("", "findahelpline.com", "your local emergency number"),
    ],
)
def test_the_notice_says_where_to_find_help(country, contact, emergency):
    notice = crisis_notice(country)
    assert contact in notice
    assert f"call {emergency}" in notice
    assert "Last checked on 20" in notice


@pytest.mark.parametrize(
    ("environment", "country"),
    [
        ({}, None),
        ({"LANG": ""}, None),
        ({"LANG": "C"}, None),
        ({"LANG": "POSIX"}, None),
        ({"LANG": "C.UTF-8"}, None),
        ({"LANG": "en"}, None),
        ({"LANG": "en_GB.UTF-8"}, "GB"),
        ({"LANG": "en-ie"}, "IE"),
        ({"LANG": "de_AT@euro"}, "AT"),
        ({"LANG": "en_GB", "LC_MESSAGES": "fr_FR"}, "FR"),
        ({"LANG": "en_GB", "LC_MESSAGES": "fr_FR", "LC_ALL": "en_NZ.UTF-8"}, "NZ"),
        ({"LANG": "en_GB", "LC_ALL": ""}, "GB"),
        ({"LANG": "en_GB", "LC_ALL": "C"}, None),
        ({"LANG": "en_001"}, None),
    ],
)
def test_the_locale_names_a_country(environment, country):
    assert country_of_locale(environment) == country


def test_the_notice_is_calm_and_the_same_for_everybody():
    openings = {crisis_notice(country).splitlines()[0] for country in (*SHIPPED["countries"], None)}
    assert len(openings) == 1
    [opening] = openings
    assert "may mean nothing of the kind" in opening
    assert "!" not in opening
    assert not any(word in opening.lower() for word in ("diagnos", "risk", "must", "warning", "alert", "detected"))


def test_every_member_of_the_european_union_has_112():
    lines = load_help_lines()
    members = {*SHIPPED["european_union"], "AT", "DE", "ES", "FR", "IE", "NL"}
    assert len(members) == 27
    assert all("112" in lines.of(member).emergency for member in members)


def test_the_shipped_dates():
    complaints = date_complaints(load_help_lines(), date.today())
    assert not [complaint for complaint in complaints if "still to come" in complaint]
    for complaint in complaints:  # no failure: an old clone must not break by waiting
        warnings.warn(f"help_lines.yaml, {complaint}", stacklevel=1)


def test_dates_are_complained_of():
    lines = load_help_lines()
    checked = {line.checked for country in (*lines.countries.values(), lines.elsewhere) for line in country.lines}
    assert date_complaints(lines, max(checked)) == []
    assert all("not checked since" in text for text in date_complaints(lines, max(checked) + MAX_AGE * 2))
    assert len(date_complaints(lines, max(checked) + MAX_AGE * 2)) >= len(SHIPPED["countries"]) + 1
    assert date_complaints(lines, min(checked) - timedelta(days=1))[0].endswith("still to come")


def test_the_oldest_date_is_the_one_that_is_told(tmp_path):
    def older(document):
        document["countries"]["DE"]["lines"].append(
            document["countries"]["DE"]["lines"][0] | {"name": "Another", "checked": date(2026, 1, 2)}
        )

    notice = crisis_notice("DE", written(tmp_path, older))
    assert "Another: " in notice
    assert "Last checked on 2026-01-02" in notice


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["countries"]["US"]["lines"][0].pop("checked"), "lines.yaml, US: a line must have exactly name"),
        (lambda d: d["countries"]["US"]["lines"][0].update(hours="all"), "US: a line must have exactly"),
        (lambda d: d["countries"]["US"]["lines"][0].update(checked="soon"), "Lifeline: checked must be a date"),
        (lambda d: d["countries"]["US"]["lines"][0].update(url="988lifeline.org"), "url must begin with https"),
        (lambda d: d["countries"]["US"]["lines"][0].update(contact=988), "contact must be a text; quote numbers"),
        (lambda d: d["countries"]["US"]["lines"][0].update(languages="English"), "languages must be a list"),
        (lambda d: d["countries"]["AU"].update(emergency=0), "AU: emergency must be a text; quote numbers"),
        (lambda d: d["countries"]["AU"].update(lines=[]), "AU: lines must be a list, and not empty"),
        (lambda d: d["countries"].update({False: d["countries"]["US"]}), r"two capital letters, not False"),
        (lambda d: d["european_union"].append("Poland"), "two capital letters, not 'Poland'"),
        (lambda d: d.pop("elsewhere"), "must hold exactly elsewhere"),
        (lambda d: "countries: [", "cannot read the help lines"),
        (lambda d: "checked: 2026-02-30", "cannot read the help lines"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    def apply(document):
        result = change(document)
        return result if isinstance(result, str) and result.startswith(("countries", "checked")) else None

    with pytest.raises(HelpLinesError, match=message):
        load_help_lines(written(tmp_path, apply))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(HelpLinesError, match=r"cannot read the help lines .*none\.yaml"):
        crisis_notice("US", tmp_path / "none.yaml")
