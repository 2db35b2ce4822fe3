"""Which parts of what the command prints are secrets? Those of the storage's URL, wherever they come up again.

The rule of `playbook_plugins.optuna.masking` is for command lines and diffs, which are not known beforehand. Here the
URL is known, so that its password is masked in messages of databases too, where nothing marks it as one.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MASK = "***"
# To the last @: a password that should have been percent-encoded is one all the same.
_USER = re.compile(r"(?P<before>[A-Za-z][\w+.\-]*://[^:/@?]*:)(?P<password>.*)@", re.DOTALL)
_FIELD = re.compile(r"(?P<before>[?&;](?P<name>[^=&;]*)=)(?P<value>[^&;]*)")
_NAMES = ("pass", "pwd", "secret", "token", "key", "auth", "credential")
_LONG = 4


def mask_url(url: str) -> str:
    """Return a URL without its password and without the query fields that may be secrets."""
    shown = _USER.sub(lambda found: f"{found['before']}{MASK}@", url)
    return _FIELD.sub(lambda found: f"{found['before']}{MASK}" if _is_secret(found["name"]) else found[0], shown)


def mask_secrets(text: str, url: str) -> str:
    """Return a text without the secrets of a URL.

    Parameters
    ----------
    text
        Such as an error message or a traceback, with the URL or parts of it in any form.
    url
        The storage's URL, or any other argument.
    """
    text = text.replace(url, mask_url(url)) if url else text
    for secret in sorted(_secrets_of(url), key=len, reverse=True):
        # A password of a few letters is also part of other words, and what is missing there would tell it.
        pattern = re.escape(secret) if len(secret) >= _LONG else rf"(?<!\w){re.escape(secret)}(?!\w)"
        text = re.sub(pattern, MASK, text)
    return text


def printable(text: str) -> str:
    """Return a text without control characters, with which names in a storage could steer the terminal."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf", "Cs") else "\ufffd" for char in text
    )


def _secrets_of(url: str) -> set[str]:
    found = _USER.search(url)
    # A raw @ in a password cuts it, and its end is then taken for a part of the host's name.
    given = [found["password"], *found["password"].split("@")] if found else []
    given += [field["value"] for field in _FIELD.finditer(url) if _is_secret(field["name"])]
    plain = {form(secret) for secret in given for form in (str, unquote, unquote_plus)}
    quoted = {form(secret) for secret in plain for form in (quote, quote_plus, _escape)}
    return (plain | quoted | {quote(secret, safe="") for secret in plain}) - {"", MASK}


def _escape(text: str) -> str:
    """Return a text as `repr` writes it, without its quotation marks."""
    return repr(text)[1:-1]


def _is_secret(name: str) -> bool:
    return any(part in name.lower() for part in _NAMES)
