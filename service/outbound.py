"""Requests to addresses that clients name, guarded: only https, only to public hosts, only to the very address that was checked.

A client's URL may point into the network that the service stands in (server-side request forgery). So a URL is read strictly, its
name is resolved once, every address that comes back is judged, and the connection goes to one of these addresses, with the name
in SNI, certificate check and Host: a name that resolves differently the next time (DNS rebinding) gains nothing. Redirects are
not followed and proxies of the environment not used.

Knows nothing of what is sent or fetched. Used for imports; made for whatever else calls clients' URLs, such as webhooks:

    await check_address(url)                                            # when the URL is given to us: AddressRefused says why not
    async with guarded_request("POST", url, content=body, timeout=…) as response:   # checks again, then connects
        if response.status_code != 200: …
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

import httpx
import idna

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""From host and port to addresses. Raises OSError."""
HTTPS_PORT = 443
MAX_URL = 2048
CONNECT_TIMEOUT, SILENCE = timedelta(seconds=10), timedelta(seconds=30)
"""What one connection may take to come about, and how long the other side may say nothing."""
USER_AGENT = "tunesmith"
_ODD = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_METADATA = {ip_address(text) for text in ("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254")}
"""Where clouds tell machines their secrets, apart from 169.254.0.0/16, which is refused whole."""
_NAT64 = IPv6Network("64:ff9b::/96")
_TUNNELS = (IPv6Network("2002::/16"), IPv6Network("2001::/32"), IPv6Network("64:ff9b:1::/48"), IPv6Network("::/96"))
"""6to4, Teredo, local NAT64 and the old "compatible" form: each hides an IPv4 address that another machine connects to."""
_THIS_NETWORK = ip_network("0.0.0.0/8")
_NOT_PUBLIC = (ip_network("192.0.0.0/24"), ip_network("192.88.99.0/24"), ip_network("3fff::/20"))
"""What older Pythons take for public: protocol assignments, 6to4 relays, addresses for documentation."""
_PUBLIC_IPV6 = IPv6Network("2000::/3")


class AddressRefused(Exception):
    """No request may go to this URL. The message says why, and nothing of what a name resolves to."""


class RequestFailed(Exception):
    """The other side could not be reached or did not answer to the end. Another time it may."""


@dataclass(frozen=True, slots=True)
class Url:
    """An https URL in parts."""

    host: str
    """In ASCII and lower case, without a final dot; an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query, as they go into the request."""

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == HTTPS_PORT else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL and the addresses that it was found to lead to, all of them allowed."""

    url: Url
    addresses: tuple[Address, ...]


def parse_url(url: str) -> Url:
    """The parts of an https URL. Raises AddressRefused for everything that two programs might read differently."""
    if len(url) > MAX_URL:
        raise AddressRefused(f"the URL is longer than {MAX_URL:,} characters")
    if _ODD.search(url):
        raise AddressRefused("the URL holds a space, a backslash or a control character; percent-encode it")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise AddressRefused("the URL can't be understood") from None
    if parts.scheme != "https":
        raise AddressRefused("the URL must begin with https://")
    if "@" in parts.netloc:
        raise AddressRefused("the URL holds a user name or a password; only URLs without are asked")
    if port == 0:
        raise AddressRefused("the URL's port must be from 1 to 65535")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii():
        raise AddressRefused("the URL's path holds characters beyond ASCII; percent-encode them")
    return Url(_host(parts), port or HTTPS_PORT, target)


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").lower()
    if "[" in parts.netloc:
        try:
            address = IPv6Address(host)
        except ValueError:
            address = None
        if address is None or address.scope_id is not None:
            raise AddressRefused("the URL's host is not an IPv6 address")
        return str(address)
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True, std3_rules=True).decode()
        except UnicodeError:
            raise AddressRefused("the URL's host is not a host name") from None
    host = host.removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise AddressRefused("the URL's host is not a host name")
    if _NUMERIC.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            # 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to some programs.
            raise AddressRefused("the URL's host is a number that is not an IPv4 address of four decimal parts") from None
    return host


def refusal(address: Address, *, allow_private: bool = False) -> str | None:
    """What kind of address no request may go to, in words; None for one that may be asked.

    `allow_private` lets loopback and private networks through; link-local and metadata addresses never.
    """
    address = _without_disguise(address)
    if address in _METADATA:
        return "a metadata service's address"
    if address.is_unspecified or (isinstance(address, IPv4Address) and address in _THIS_NETWORK):
        return "an unspecified address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_loopback:
        return None if allow_private else "a loopback address"
    if isinstance(address, IPv6Address) and any(address in network for network in _TUNNELS):
        return "an address that hides another"
    if address.is_reserved:
        return "a reserved address"
    if not _is_public(address):
        return None if allow_private else "a private address"
    return None


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _PUBLIC_IPV6:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


def _without_disguise(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for (mapped, or NAT64), else the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


async def resolve(host: str, port: int) -> Sequence[str]:
    """What the system's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def check_address(url: str, *, allow_private: bool = False, resolver: Resolver = resolve) -> Destination:
    """Where the URL leads, with its name resolved once and every address judged.

    Raises AddressRefused when one of them may not be asked, RequestFailed when the name resolves to nothing.
    """
    parsed = parse_url(url)
    try:
        texts = await resolver(parsed.host, parsed.port)
    except (OSError, UnicodeError):
        texts = ()
    if not texts:
        raise RequestFailed(f"the host name '{parsed.host}' can't be resolved")
    addresses = tuple(dict.fromkeys(ip_address(text) for text in texts))
    for address in addresses:
        if kind := refusal(address, allow_private=allow_private):
            raise AddressRefused(f"'{parsed.host}' leads to {kind}")
    return Destination(parsed, addresses)


@asynccontextmanager
async def guarded_request(
    method: str,
    url: str,
    *,
    timeout: timedelta,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
    allow_private: bool = False,
    resolver: Resolver = resolve,
) -> AsyncGenerator[httpx.Response]:
    """Ask the URL and give the answer, whose body is still to be read (`aiter_raw`, as it was sent) within the block.

    `timeout` bounds everything from resolving to the end of the block. An answer of any status is an answer, a redirect too.
    Raises AddressRefused as `check_address` does, RequestFailed when there is no answer or its body breaks off.
    """
    try:
        async with asyncio.timeout(timeout.total_seconds()):
            destination = await check_address(url, allow_private=allow_private, resolver=resolver)
            async with _client() as client:
                response = await _sent(client, method, destination, headers or {}, content)
                try:
                    yield response
                finally:
                    await response.aclose()
    except TimeoutError:
        raise RequestFailed(f"there was no complete answer within {timeout.total_seconds():g} s") from None
    except httpx.HTTPError as error:
        raise RequestFailed(f"there was no complete answer ({type(error).__name__})") from error


def _client() -> httpx.AsyncClient:
    silence = httpx.Timeout(SILENCE.total_seconds(), connect=CONNECT_TIMEOUT.total_seconds())
    # Certificates: certifi's, or those that SSL_CERT_FILE or SSL_CERT_DIR name.
    return httpx.AsyncClient(verify=httpx.create_ssl_context(), trust_env=False, follow_redirects=False, timeout=silence)


async def _sent(
    client: httpx.AsyncClient, method: str, destination: Destination, headers: Mapping[str, str], content: bytes | None
) -> httpx.Response:
    """The answer of the first address that can be connected to."""
    url = destination.url
    named = {"User-Agent": USER_AGENT, **headers, "Host": url.authority}
    failure: Exception | None = None
    for address in destination.addresses:
        at = httpx.URL(scheme="https", host=str(address), port=url.port, raw_path=url.target.encode())
        request = client.build_request(method, at, headers=named, content=content, extensions={"sni_hostname": url.host})
        try:
            return await client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # nothing was sent yet
            failure = error
    assert failure is not None
    raise failure
