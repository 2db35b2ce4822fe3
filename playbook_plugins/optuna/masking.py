"""Which parts of a command line or a diff are secrets that must not be kept with a study?

Playbook: "Setting up experiment tracking" asks for reproduction commands and unsubmitted changes; everyone who can read
the storage can read them.

The rule, in full. Masked, as ``***``, are:

1. in every URL the password, and a user name that stands alone (``https://TOKEN@host``);
2. the value of an option, an environment variable or a URL's query field whose name holds a word such as password or
   secret, or ends with a word such as token or key: ``--api-key X``, ``--api-key=X``, ``HF_TOKEN=X``;
3. what follows ``Bearer`` or ``Basic`` in a header;
4. words of the well-known shapes of access tokens (GitHub, GitLab, Hugging Face, OpenAI, Slack, AWS, W&B, JWT).

A secret that is given without any of these signs, such as the argument of a one-letter option, is not recognized.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MASK = "***"

_ANYWHERE = frozenset({"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials"})
# At the end only, because --token-limit and --key-frames hold no secrets.
_AT_THE_END = frozenset({"token", "key", "pwd", "pass", "auth", "apikey", "accesskey", "authtoken", "pat"})

_URL_USER = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.\-]*://)(?P<user>[^\s/:@'\"]*)(?P<password>:[^\s/'\"]*)?@", re.IGNORECASE
)
_HEADER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=\-]{8,}", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|AKIA|ASIA|wandb_v1_|eyJ)[A-Za-z0-9_\-.]{16,}"
)
_PAIR = re.compile(r"(?P<name>[A-Za-z][\w\-.]*)=(?P<value>[^\s&'\"]+)")
_QUOTED = re.compile(
    r"(?P<name>[A-Za-z][\w\-.]*)(?P<between>['\"]?\s*[:=]\s*)(?P<quote>['\"])(?P<value>[^'\"\n]+)(?P=quote)"
)


def mask_command(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command line without its secrets, by the rule above."""
    masked = []
    is_secret = False
    for argument in arguments:
        is_option = argument.startswith("-")
        masked.append(MASK if is_secret and not is_option else _mask_argument(argument))
        is_secret = is_option and "=" not in argument and _names_a_secret(argument)
    return masked


def mask_text(text: str) -> str:
    """Return a text, such as a diff, without its secrets; of assignments only those of quoted strings are masked."""
    text = _QUOTED.sub(
        lambda found: (
            f"{found['name']}{found['between']}{found['quote']}{MASK}{found['quote']}"
            if _names_a_secret(found["name"])
            else found[0]
        ),
        text,
    )
    return _mask_anywhere(text)


def _mask_argument(argument: str) -> str:
    option, equals, _ = argument.partition("=")
    if equals and _names_a_secret(option) and "://" not in option:
        return f"{option}={MASK}"
    return _PAIR.sub(
        lambda found: f"{found['name']}={MASK}" if _names_a_secret(found["name"]) else found[0],
        _mask_anywhere(argument),
    )


def _mask_anywhere(text: str) -> str:
    text = _URL_USER.sub(_mask_user, text)
    text = _HEADER.sub(lambda found: f"{found[1]} {MASK}", text)
    return _SHAPES.sub(MASK, text)


def _mask_user(found: re.Match[str]) -> str:
    user = MASK if found["password"] is None else f"{found['user']}:{MASK}"
    return f"{found['scheme']}{user}@"


def _names_a_secret(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(".", "_").split("_")
    return any(word in _ANYWHERE for word in words) or words[-1] in _AT_THE_END
