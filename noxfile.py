"""Every check of the project, one session each: `nox -l` lists them, `nox -s tests -- -x` passes on `-x`."""

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.10.14"
nox.options.sessions = ["tests", "lint", "typing"]
# A check never fetches an interpreter: a machine without a network must fail the same way every time.
nox.options.download_python = "never"
# uv where it is installed, as it is about three times faster; otherwise virtualenv, which nox brings along.
nox.options.default_venv_backend = "uv|virtualenv"

# uv brings its own list of certificate authorities; prefer the machine's.
if Path("/etc/ssl/certs/ca-certificates.crt").exists():
    os.environ.setdefault("UV_SYSTEM_CERTS", "1")

# The test group brings the servers along: one that is missing is a failure here, not a skipped test.
os.environ.setdefault("EXECSAFE_REQUIRE_SERVERS", "1")

PYPROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PYPROJECT)
EXTRAS = ",".join(sorted(PYPROJECT["project"]["optional-dependencies"]))

NOT_CAMPAIGN = ("-m", "not campaign")
# On all cores; tests against the clock of the wall stay together on one (see tests/conftest.py).
AT_ONCE = ("-n", "auto", "--maxprocesses=4", "--dist", "loadgroup")
# A run of everything also says whether every requirement has a test that passed.
EVERYTHING = (*NOT_CAMPAIGN, *AT_ONCE, "--requirements")


def group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PYPROJECT, name))


# Without `python=`: a session pinned to interpreters that are all missing is skipped and counts as a success.
@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the interpreter that runs nox."""
    session.install("-e", f".[{EXTRAS}]", *group("test"))
    session.run("pytest", *(NOT_CAMPAIGN if session.posargs else EVERYTHING), *session.posargs)


@nox.session(python=PYTHONS)
def tests_matrix(session: nox.Session) -> None:
    """Run the tests against the built wheel on every supported Python."""
    session.install(f".[{EXTRAS}]", *group("test"))
    session.run("pytest", *NOT_CAMPAIGN, *AT_ONCE, *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the tests with every direct dependency at its declared lower bound, without extras."""
    bounds = [requirement.replace(">=", "==") for requirement in PYPROJECT["project"]["dependencies"]]
    session.install("-e", ".", *bounds, *group("test"))
    session.run("pytest", *NOT_CAMPAIGN, *AT_ONCE, *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests under branch coverage and report what no test reaches."""
    session.install("-e", f".[{EXTRAS}]", *group("test"))
    session.run("coverage", "run", "-m", "pytest", *NOT_CAMPAIGN, *session.posargs)
    session.run("coverage", "report")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and spelling."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types, and that the whole public face has some."""
    session.install("-e", f".[{EXTRAS}]", *group("test"), *group("typing"))
    session.run("mypy", "--strict", "src", "tests/typing")
    session.run("basedpyright", "--verifytypes", "execsafe", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_site; `nox -s docs -- serve` shows it while you write."""
    session.install("-e", ".", *group("docs"))
    command = session.posargs or ["build", "--strict"]
    session.run("zensical", *command, "-f", "docs/mkdocs.yml")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure: all benchmarks, each beside its floor, in one run."""
    session.install("-e", f".[{EXTRAS}]", *group("test"))
    session.run("pytest", "benchmarks", "--benchmark-enable", "-rfE", *session.posargs)


@nox.session
def campaign(session: nox.Session) -> None:
    """Run the long simulation and kill campaigns."""
    session.install("-e", f".[{EXTRAS}]", *group("test"))
    patience = ("--hypothesis-profile=thorough", "-o", "faulthandler_timeout=0")
    session.run("pytest", "-m", "campaign", *patience, *session.posargs)
