"""Addresses of servers: one spelling for each, nothing in them that would be a secret, and what is this machine itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamachat.errors import UsageError
from llamachat.system.web_address import check_key_name, is_loopback, server_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("HTTPS://API.Example.com/v1/", "https://api.example.com/v1"),
        ("http://[::1]:80/", "http://[::1]:80/v1"),
        ("https://h/api", "https://h/api/v1"),
        ("https://h/v1beta/openai", "https://h/v1beta/openai"),
        ("http://h/v1/chat/completions", "http://h/v1"),
        ("http://h/v1/models/", "http://h/v1"),
        ("http://h:/v1", "http://h/v1"),
    ],
)
def test_an_address_has_one_spelling(text: str, url: str) -> None:
    assert server_url(text) == url == server_url(url)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no address"),
        ("ftp://h", "no address of a server; nothing was sent; write one like http"),
        ("localhost:8080", "write http://localhost:8080"),
        ("http://", "no address"),
        ("http://me:pass@h", "holds a user or a password"),
        ("pass@h", "holds a user or a password"),
        ("http://h/v1?key=pass", "more than a scheme"),
        ("http://h/v1#pass", "more than a scheme"),
        ("http://h/../x", "more than a scheme"),
        ("http://h:99999", "cannot be read"),
        ("http://[::1", "cannot be read"),
        ("http://[::1]evil.example", "cannot be read"),
        ("http://evil.example[::1]", "cannot be read"),
        ("http://[v1.evil]", "cannot be read"),
        ("http://[::1%25eth0]", "cannot be read"),
        ("http://h:0/v1", "cannot be read"),
        ("http:localhost", "write one like http://127.0.0.1:8080/v1"),
        ("http://-h", "no host"),
        ("http://ex\u0430mple.com", "characters that no address has"),
        ("http://h\\@x", "characters that no address has"),
        ("http://h\r\nX: y", "characters that no address has"),
        ("http://" + "h" * 2000, "too long"),
    ],
)
def test_what_is_no_address_is_one_line_without_a_secret(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        server_url(text)
    assert "\n" not in str(caught.value) and "pass@" not in str(caught.value) and "=pass" not in str(caught.value)


@given(st.text(max_size=30).map("http://".__add__) | st.text(max_size=30))
def test_any_text_is_an_address_or_a_clean_error(text: str) -> None:
    try:
        url = server_url(text)
    except UsageError:
        return
    assert server_url(url) == url and "#" not in url


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"])
def test_this_machine(host: str) -> None:
    assert is_loopback(server_url(f"http://{host}:1"))


@pytest.mark.parametrize(
    "host",
    ["localhost.com", "127.0.0.1.nip.io", "0.0.0.0", "127.1", "[::]", "10.0.0.1", "h", "2130706433", "0177.0.0.1",
     "[::ffff:8.8.8.8]"],
)  # fmt: skip
def test_other_machines(host: str) -> None:
    assert not is_loopback(server_url(f"http://{host}:1"))


def test_a_key_in_the_place_of_its_variable_is_not_shown() -> None:
    check_key_name("OPENAI_API_KEY")
    for key in ("sk-abc", "hf_abc", "", "A" * 101, "A B"):
        with pytest.raises(UsageError, match="not the name of an environment variable") as caught:
            check_key_name(key)
        assert "abc" not in str(caught.value)
