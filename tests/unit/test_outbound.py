"""The guard of requests that go out: every class of address, every disguise, and that the checked address is the one connected to."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from ipaddress import ip_address

import pytest

from service.outbound import AddressRefused, RequestFailed, check_address, guarded_request, parse_url, refusal
from tests.https_server import HttpsServer, https_server

SOON = timedelta(seconds=10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    with https_server(tmp_path_factory.mktemp("https")) as running:
        yield running


@pytest.fixture
def trusted(server: HttpsServer, monkeypatch: pytest.MonkeyPatch) -> HttpsServer:
    monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
    return server


class Names:
    """A resolver whose answers change: the first one first, the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def wide(text: str) -> str:
    """The text in the wide characters that IDNA takes for the usual ones."""
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


# Addresses


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"), ("127.255.0.3", "loopback"), ("::1", "loopback"), ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"), ("10.1.2.3", "private"), ("172.16.0.1", "private"), ("192.168.1.1", "private"),
        ("100.64.0.1", "private"), ("198.18.0.1", "private"), ("192.0.2.1", "private"), ("192.0.0.8", "private"),
        ("192.88.99.1", "private"),
        ("fc00::1", "private"), ("fdab::1", "private"), ("fec0::1", "private"), ("2001:db8::1", "private"), ("3fff::1", "private"),
        ("::ffff:10.0.0.1", "private"), ("64:ff9b::a00:1", "private"), ("169.254.169.254", "link-local"), ("169.254.0.1", "link-local"),
        ("fe80::1", "link-local"), ("fe80::1%eth0", "link-local"), ("::ffff:169.254.169.254", "link-local"),
        ("168.63.129.16", "metadata"), ("100.100.100.200", "metadata"), ("192.0.0.192", "metadata"), ("fd00:ec2::254", "metadata"),
        ("0.0.0.0", "unspecified"), ("0.1.2.3", "unspecified"), ("::", "unspecified"), ("::ffff:0.0.0.0", "unspecified"),
        ("224.0.0.1", "multicast"), ("239.255.255.250", "multicast"), ("ff02::1", "multicast"), ("ff0e::1", "multicast"),
        ("240.0.0.1", "reserved"), ("255.255.255.255", "reserved"), ("100::1", "reserved"), ("5f00::1", "reserved"),
        ("2002:7f00:1::", "hides"), ("2001:0:5ef5:79fb::1", "hides"), ("64:ff9b:1::1", "hides"), ("::7f00:2", "hides"),
    ],
)  # fmt: skip
def test_addresses_that_no_request_goes_to(address: str, kind: str) -> None:
    assert kind in (refusal(ip_address(address)) or "")
    passes = refusal(ip_address(address), allow_private=True) is None
    assert passes == (kind in ("loopback", "private")), "private networks may be allowed, the others never"


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_public_addresses(address: str) -> None:
    assert refusal(ip_address(address)) is None


# URLs


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("https://example.com", "example.com", 443, "/"),
        ("https://Example.COM./a/b.csv?x=1&y=%20#part", "example.com", 443, "/a/b.csv?x=1&y=%20"),
        ("https://example.com:8443/", "example.com", 8443, "/"),
        ("https://bücher.example/", "xn--bcher-kva.example", 443, "/"),
        (f"https://{wide('EXAMPLE')}\u3002com/", "example.com", 443, "/"),
        ("https://my_bucket.s3.example.com/", "my_bucket.s3.example.com", 443, "/"),
        ("https://1.1.1.1/", "1.1.1.1", 443, "/"),
        ("https://[2606:4700::0001]:9443/", "2606:4700::1", 9443, "/"),
    ],
)
def test_a_url_in_parts(url: str, host: str, port: int, target: str) -> None:
    parsed = parse_url(url)
    assert (parsed.host, parsed.port, parsed.target) == (host, port, target)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "//example.com/", "example.com", "", "https:///path", "https://",
        "https://user@example.com/", "https://user:pw@example.com/", "https://example.com@127.0.0.1/", "https://@example.com/",
        "https://example.com:0/", "https://example.com:65536/", "https://example.com:x/", "https://example.com:-1/",
        "https://2130706433/", "https://0x7f000001/", "https://0x7f.1/", "https://0177.0.0.1/", "https://127.1/", "https://127.0.0.1.5/",
        f"https://{wide('127')}.1/", "https://[::1/", "https://[fe80::1%25eth0]/", "https://[::ffff:1.2.3.4.5]/", "https://[example.com]/",
        "https://exa mple.com/", "https://example.com\\@evil.test/", "https://example.com/\n", "https://exam\tple.com/", "\x00https://a.b/",
        "https://example..com/", "https://.example.com/", "https://example.com../", "https://-a.com/", "https://%31%32%37.0.0.1/",
        "https://exam%00ple.com/", "https://☃..com/", "https://example.com/ü", "https://" + "a" * 64 + ".com/",
        "https://" + "a." * 130 + "com/", "https://example.com/" + "x" * 2048,
    ],
)  # fmt: skip
def test_urls_that_are_not_asked(url: str) -> None:
    with pytest.raises(AddressRefused):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/", "https://127.0.0.1./", "https://[::1]/", "https://[::ffff:7f00:1]/", f"https://{wide('127')}.0.0.{wide('1')}/"],
)
async def test_an_address_in_a_url_is_judged_like_a_resolved_one(url: str) -> None:
    with pytest.raises(AddressRefused, match="loopback"):
        await check_address(url)


async def test_one_private_address_among_public_ones_is_enough() -> None:
    names = Names(["93.184.216.34", "10.0.0.1"])
    with pytest.raises(AddressRefused, match=r"'example\.com' leads to a private address") as refused:
        await check_address("https://example.com/", resolver=names)
    assert "10.0.0.1" not in str(refused.value), "nobody learns what a name is inside"
    assert names.asked == [("example.com", 443)]
    allowed = await check_address("https://example.com/", allow_private=True, resolver=Names(["10.0.0.1", "10.0.0.1", "10.0.0.2"]))
    assert [str(address) for address in allowed.addresses] == ["10.0.0.1", "10.0.0.2"]


async def test_a_name_that_resolves_to_nothing() -> None:
    with pytest.raises(RequestFailed, match="can't be resolved"):
        await check_address("https://nowhere.invalid/", resolver=Names([]))

    async def fails(host: str, port: int) -> Sequence[str]:
        raise OSError("no name server")

    with pytest.raises(RequestFailed, match="can't be resolved"):
        await check_address("https://nowhere.invalid/", resolver=fails)


# Requests


async def asked(url: str, names: Names, timeout: timedelta = SOON, **more: object) -> tuple[int, bytes]:
    async with guarded_request("GET", url, timeout=timeout, allow_private=True, resolver=names, **more) as response:  # type: ignore[arg-type]
        return response.status_code, b"".join([piece async for piece in response.aiter_raw()])


async def test_the_name_goes_into_host_and_certificate_and_the_address_is_the_checked_one(trusted: HttpsServer) -> None:
    trusted.serve("/a?b=%2F", b"bytes")
    names = Names(["127.0.0.1"])
    assert await asked(trusted.url("/a?b=%2F", "files.test"), names, headers={"Accept-Encoding": "identity"}) == (200, b"bytes")
    line, headers = trusted.asked[-1]
    assert line == "GET /a?b=%2F HTTP/1.1"
    assert headers["host"] == f"files.test:{trusted.port}"
    assert headers["accept-encoding"] == "identity"
    assert names.asked == [("files.test", trusted.port)]


async def test_a_name_that_resolves_differently_the_next_time_gains_nothing(trusted: HttpsServer) -> None:
    """Rebinding: the check sees a public address, whoever resolves again would see loopback."""
    trusted.serve("/secret", b"secret")
    before = len(trusted.asked)
    names = Names(["240.0.0.1"], ["127.0.0.1"])
    with pytest.raises(AddressRefused, match="reserved"):
        await asked(trusted.url("/secret", "files.test"), names)
    names = Names(["127.0.0.1"], ["127.0.0.9"])
    assert (await asked(trusted.url("/secret", "files.test"), names))[0] == 200
    assert len(names.asked) == 1, "asked once, for the check and the connection together"
    assert len(trusted.asked) == before + 1


async def test_the_check_holds_again_at_the_request(trusted: HttpsServer) -> None:
    before = len(trusted.asked)
    with pytest.raises(AddressRefused, match="loopback"):
        async with guarded_request("POST", trusted.url("/hook"), content=b"{}", timeout=SOON):
            pass
    assert len(trusted.asked) == before


async def test_the_next_address_is_tried_when_one_does_not_listen(trusted: HttpsServer) -> None:
    trusted.serve("/a", b"x")
    assert await asked(trusted.url("/a", "files.test"), Names(["127.0.0.7", "127.0.0.1"])) == (200, b"x")


async def test_a_certificate_of_another_name_or_of_nobody_known(trusted: HttpsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestFailed, match="ConnectError"):
        await asked(trusted.url("/a", "other.test"), Names(["127.0.0.1"]))
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(RequestFailed, match="ConnectError"):
        await asked(trusted.url("/a", "files.test"), Names(["127.0.0.1"]))


async def test_redirects_are_answers_and_proxies_of_the_environment_not_used(trusted: HttpsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    trusted.serve("/there", b"", 302, Location=trusted.url("/elsewhere"))
    before = len(trusted.asked)
    assert await asked(trusted.url("/there"), Names(["127.0.0.1"])) == (302, b"")
    assert len(trusted.asked) == before + 1


async def test_a_body_goes_out(trusted: HttpsServer) -> None:
    trusted.answers["/hook"] = lambda request: request.send_error(204)
    url = trusted.url("/hook", "files.test")
    async with guarded_request("POST", url, content=b"{}", timeout=SOON, allow_private=True, resolver=Names(["127.0.0.1"])) as response:
        assert response.status_code == 204
    assert trusted.asked[-1][1]["content-length"] == "2"


async def test_the_deadline_holds_while_the_body_drips(trusted: HttpsServer) -> None:
    def drip(request: object) -> None:
        request.send_response(200)  # type: ignore[attr-defined]
        request.end_headers()  # type: ignore[attr-defined]
        for _ in range(100):
            request.wfile.write(b"x")  # type: ignore[attr-defined]
            time.sleep(0.05)

    trusted.answers["/drip"] = drip
    began = time.monotonic()
    with pytest.raises(RequestFailed, match=r"within 0\.5 s"):
        await asked(trusted.url("/drip"), Names(["127.0.0.1"]), timedelta(seconds=0.5))
    assert time.monotonic() - began < 4


async def test_a_body_that_breaks_off(trusted: HttpsServer) -> None:
    trusted.serve("/cut", b"short", Content_Length="50")
    with pytest.raises(RequestFailed, match="no complete answer"):
        await asked(trusted.url("/cut"), Names(["127.0.0.1"]))
