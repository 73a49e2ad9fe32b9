"""A Dockerfile against the rules that matter here; a problem's key is the line and instruction.

Pinned bases and packages, a last user that is not root, no secret in a layer, nothing from the
network but packages, and files that are there.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.validate.problems import Problem, unknown

INSTRUCTIONS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
    "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|ACCESS_?KEY)S?$", re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    """One instruction.

    Args:
        line: The line it begins at, from 1.
        word: The instruction, in capitals.
        rest: All after it, continued lines joined.
    """

    line: int
    word: str
    rest: str


def check(file: Path, context: Path) -> list[Problem]:
    """All problems of a Dockerfile.

    Args:
        file: The Dockerfile.
        context: The folder that it is built in, for what it copies.
    """
    steps = list(_steps(file.read_text()))
    problems = []
    arguments: dict[str, str] = {}
    for step in steps:
        if step.word == "ARG" and "=" in step.rest:
            name, _, value = step.rest.partition("=")
            arguments[name] = value
        rules = _RULES.get(step.word, ())
        found = [message for rule in rules for message in rule(_resolved(step.rest, arguments))]
        if step.word == "COPY":
            found += _copied(step.rest, context)
        if step.word not in INSTRUCTIONS:
            found.append(unknown(step.word, list(INSTRUCTIONS)))
        problems += [Problem(file, f"line {step.line} {step.word}", m) for m in found]
    return problems + _ends(file, steps, arguments)


def _steps(text: str) -> Iterator[Step]:
    """The instructions, without comments and empty lines."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begun = begun if parts else number
        parts.append(line.strip().removesuffix("\\").strip())
        if line.rstrip().endswith("\\"):
            continue
        word, _, rest = " ".join(parts).partition(" ")
        yield Step(begun, word.upper(), rest.strip())
        parts = []


def _resolved(text: str, arguments: dict[str, str]) -> str:
    """The text with build arguments at their defaults; other variables stay."""

    def value(found: re.Match[str]) -> str:
        return arguments.get(found[1] or found[2], found[0])

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, text)


def _base(rest: str) -> Iterator[str]:
    image = rest.split()[0]
    name, _, tag = image.rpartition("/")[2].partition(":")
    if name != "scratch" and "@sha256:" not in image and tag in ("", "latest"):
        yield f"{image} has no tag or the tag latest: another image tomorrow"


def _run(rest: str) -> Iterator[str]:
    for command in re.split(r"&&|\|\||;", rest):
        words = shlex.split(command)
        yield from _command(words)
        if "apt-get" in words and "install" in words and "/var/lib/apt/lists" not in rest:
            yield "apt-get install without rm -rf /var/lib/apt/lists/* in the same layer"
        if re.search(r"\b(curl|wget)\b.*\|\s*(ba)?sh\b", command):
            yield "runs a script from the network unseen"


def _command(words: list[str]) -> Iterator[str]:
    if any(word.rpartition("/")[2].startswith("pip") for word in words) and "install" in words:
        if not {"-c", "--constraint", "--require-hashes"} & set(words):
            yield "pip install without -c constraints.txt: versions would be free"
        if "--no-cache-dir" not in words:
            yield "pip install without --no-cache-dir: the cache stays in the layer"
    if "apt-get" in words and "install" in words and "--no-install-recommends" not in words:
        yield "apt-get install without --no-install-recommends"
    if "sudo" in words:
        yield "sudo: give the instruction before USER"


def _fetched(_rest: str) -> Iterator[str]:
    yield "ADD unpacks and downloads; use COPY"


def _variable(rest: str) -> Iterator[str]:
    for name in re.findall(r"(?:^|\s)(\w+)(?==|$)", rest):
        if SECRET.search(name):
            yield f"{name}: a secret would stay in the image; mount it at run time"


def _exec_form(rest: str) -> Iterator[str]:
    if not rest.startswith("["):
        yield 'write ["word", "word"]: a shell in between does not pass signals on'


def _absolute(rest: str) -> Iterator[str]:
    if not rest.startswith("/"):
        yield f"{rest} must be an absolute path"


_RULES: dict[str, tuple[Callable[[str], Iterator[str]], ...]] = {
    "FROM": (_base,),
    "RUN": (_run,),
    "ADD": (_fetched,),
    "ARG": (_variable,),
    "ENV": (_variable,),
    "CMD": (_exec_form,),
    "ENTRYPOINT": (_exec_form,),
    "WORKDIR": (_absolute,),
}


def _copied(rest: str, context: Path) -> Iterator[str]:
    """Sources that are not in the context, or all of it."""
    words = shlex.split(rest)
    if any(word.startswith("--from=") for word in words):
        return
    for source in [word for word in words if not word.startswith("--")][:-1]:
        if source in (".", "./", "/"):
            yield "copies the whole folder; name what the image needs"
        elif not list(context.glob(source.rstrip("/"))):
            yield f"{source} is not there"


def _ends(file: Path, steps: list[Step], arguments: dict[str, str]) -> list[Problem]:
    """The last stage ends as an ordinary user, by number."""
    begins = [place for place, step in enumerate(steps) if step.word == "FROM"]
    if not begins:
        return [Problem(file, "line 1 FROM", "is missing")]
    users = [step for step in steps[begins[-1] :] if step.word == "USER"]
    if not users:
        return [Problem(file, f"line {steps[-1].line} USER", "is missing: it would run as root")]
    user = _resolved(users[-1].rest, arguments).partition(":")[0]
    if not user.isdigit() or int(user) == 0:
        message = f"{user} must be a number above 0: Kubernetes cannot tell whether a name is root"
        return [Problem(file, f"line {users[-1].line} USER", message)]
    return []
