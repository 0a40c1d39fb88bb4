"""Commands that stand in sentences and in --help, and not in a block that is run: what they name exists."""

from __future__ import annotations

import re
import shlex

import click
import pytest

from homojl_cli.main import COMMANDS, cli
from tests.docs.pages import PAGES, ROOT, check_options

_TEXTS = {
    page: re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for page, path in PAGES.items()
}
_SPANS = [
    (page, " ".join(span.split()))
    for page, text in _TEXTS.items()
    for span in re.findall(r"`((?:homojl [a-z]|python\s+benchmarks/)[^`]*)`", text)
]
_EXAMPLES = [
    line.strip()
    for command in (cli, *(cli.get_command(click.Context(cli), name) for name in COMMANDS))
    for line in (command.help or "").splitlines()
    if line.strip().startswith("homojl ")
]


def _options(command: str) -> set[str]:
    """Names of all options of a `homojl` command."""
    context = click.Context(cli, info_name="homojl")
    _, found, rest = cli.resolve_command(context, shlex.split(command)[1:])
    if isinstance(found, click.Group) and rest:
        _, found, _ = found.resolve_command(context, rest)
    return {name for parameter in found.params for name in parameter.opts}


@pytest.mark.parametrize(("page", "span"), dict.fromkeys(_SPANS), ids=lambda value: value)
def test_a_command_in_a_sentence_has_what_it_names(page, span):
    words = shlex.split(span)
    named = {word for word in words if word.startswith("--") and word != "--help"}
    if words[0] == "homojl":
        assert named <= _options(span)
    else:
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in script for option in named)


@pytest.mark.parametrize("example", dict.fromkeys(_EXAMPLES))
def test_an_example_of_the_help_is_understood(example):
    check_options(re.split(r"\s{2,}", example)[0])


def test_there_are_sentences_and_examples():
    assert len(_SPANS) > 20
    assert len(_EXAMPLES) > 30
