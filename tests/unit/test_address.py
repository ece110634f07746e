import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from AntiSSRF import AntiSSRFPolicy, IPAddressRanges, PolicyConfigOptions
from hypothesis import given
from hypothesis import strategies as st
from ssrfguard import DEFAULT_DENIED

from classifleet.config.errors import SettingsError
from classifleet.worker.ingest import address as table
from classifleet.worker.ingest.address import forbidden_reason, odd_notation
from classifleet.worker.ingest.policy import AddressPolicy


def _words(text):
    return text.split()


FORBIDDEN = _words("""
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254
    169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.9 192.0.0.192 192.0.2.1 192.31.196.1
    192.52.193.1 192.88.99.1 192.168.0.1 192.168.255.255 192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1
    203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16
    :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8
    64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::7f00:1 100::1 100:0:0:1::1 1::1 1fff:ffff::1
    2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:3::1 2001:4:112::1 2001:10::1 2001:20::1 2001:30::1
    2001:1ff:ffff::1 2001:db8::1 2002:7f00:1:: 2002:808:808::1 2620:4f:8000::1 3fff::1 3fff:fff::1 4000::1 5f00::1
    fc00::1 fd00:ec2::254 fd20:ce::254 fe80::1 fe80::1%eth0 fec0::1 ff02::1 ff0e::1
    2606:4700::5efe:7f00:1 2606:4700::200:5efe:7f00:1 2606:4700:1:2:0:5efe:10.0.0.1 2606:4700:4700::1111%eth0
""")

PUBLIC = _words("""
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 93.184.216.34 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1
    168.63.129.15 168.63.129.17 169.253.255.255 172.15.255.255 172.32.0.0 192.0.1.1 192.167.255.255 192.169.0.0
    198.17.255.255 198.20.0.0 223.255.255.255
    2000::1 2001:200::1 2001:4860:4860::8888 2001:db7::1 2003::1 2606:4700:4700::1111 2620:4f:8001::1 2a00:1450::1
    3ffe:ffff::1 3fff:1000::1 2606:4700::5eff:7f00:1
""")


@pytest.mark.parametrize("text", FORBIDDEN)
def test_what_is_not_public_unicast_is_forbidden(text):
    assert forbidden_reason(ip_address(text))
    for port in (80, 443, 8080):
        assert AddressPolicy().refusal("host.example", ip_address(text), port)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_unicast_is_fetched_on_the_web_ports_alone(text):
    address, policy = ip_address(text), AddressPolicy()
    assert forbidden_reason(address) is None
    assert policy.refusal("host.example", address, 80) is None
    assert policy.refusal("host.example", address, 443) is None
    assert "http_allow" in policy.refusal("host.example", address, 8080)


@given(st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address))
def test_never_laxer_than_the_standard_library(address):
    if forbidden_reason(address) is None:
        assert address.is_global
        assert not any((address.is_multicast, address.is_reserved, address.is_private, address.is_unspecified))


@given(st.integers(0, 2**32 - 1), st.sampled_from(["::", "::ffff:0:0", "::ffff:0:0:0", "64:ff9b::", "64:ff9b:1::"]))
def test_no_ipv4_address_hides_in_a_translation_prefix(number, prefix):
    assert forbidden_reason(IPv6Address(int(IPv6Address(prefix)) | number))


@pytest.mark.parametrize(
    "host",
    _words("2130706433 0x7f000001 0X7F.1 0177.0.0.1 017700000001 127.1 127.0.1 0 1 127.0.0.1. 127.0.0.1.. 8.8.2056"),
)
def test_an_ipv4_address_in_disguise_is_refused_even_if_it_is_public(host):
    assert odd_notation(host)
    assert "notation" in AddressPolicy(["127.0.0.1:80"]).target_refusal(host, 80)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "localhost", "face", "1.example", "0x7f.example", "a-1.2", "bücher.de", "x\ud800y"]
)
def test_what_is_not_disguised(host):
    assert not odd_notation(host)


def test_a_host_rule_holds_for_that_name_and_port_alone():
    policy = AddressPolicy(["Minio.Internal:9000"])
    inside = ip_address("10.1.2.3")
    assert policy.target_refusal("minio.internal", 9000) is None
    assert policy.refusal("MINIO.internal", inside, 9000) is None
    assert policy.refusal("minio.internal", ip_address("93.184.216.34"), 9000) is None
    assert policy.refusal("evil.example", inside, 9000)
    assert policy.refusal("minio.internal.", inside, 9000)  # may be another name
    assert policy.refusal("minio.internal", inside, 80)
    assert policy.target_refusal("evil.example", 9000)
    assert policy.target_refusal("10.1.2.3", 9000)


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("10.0.0.0/8:8080", "10.9.9.9", "11.0.0.1"),
        ("10.1.2.3:8080", "10.1.2.3", "10.1.2.4"),
        ("[fd00::/8]:8080", "fd12::1", "fe80::1"),
        ("[::1]:8080", "::1", "::ffff:127.0.0.1"),
        ("127.0.0.1:8080", "127.0.0.1", "::ffff:127.0.0.1"),
        (" 0.0.0.0/0:8080 ", "127.0.0.1", "::1"),
    ],
)
def test_a_network_rule_holds_for_its_addresses_under_any_name(entry, inside, outside):
    policy = AddressPolicy([entry])
    assert policy.target_refusal("any.example", 8080) is None  # the address will decide
    assert policy.target_refusal(inside, 8080) is None
    assert policy.refusal("any.example", ip_address(inside), 8080) is None
    assert policy.refusal("any.example", ip_address(inside), 80)
    assert policy.refusal("any.example", ip_address(outside), 8080)
    assert policy.refusal("any.example", ip_address("93.184.216.34"), 443) is None


def test_a_port_opened_for_a_private_network_stays_closed_for_public_addresses():
    assert AddressPolicy(["10.0.0.0/8:8080"]).refusal("any.example", ip_address("93.184.216.34"), 8080)


def test_a_refusal_does_not_tell_the_address_behind_a_name():
    assert "10.77.1.2" not in AddressPolicy().refusal("db.corp", ip_address("10.77.1.2"), 80)


@pytest.mark.parametrize(
    "entry",
    [
        "", "host", "host:", ":80", "host:0", "host:65536", "host:http", "http://host:80", "host:80/path", "*:80",
        "fd00::/8:443", "::1:80", "[fd00::/8]", "[10.0.0.0/8]:80", "[host]:80", "10.0.0.1/8:80", "10.0.0.0/33:80",
        "*.:80", "a.*.b:80", "**.a:80", "*.10.0.0.1:80/", "[*.a]:80",
        "127.1:80", "2130706433:80", "0177.0.0.1:80", "a b:80", "host:\uff18\uff10", "-host:80", "user@host:80",
    ],
)  # fmt: skip
def test_a_bad_entry_is_a_clear_settings_error(entry):
    with pytest.raises(SettingsError, match="http_allow"):
        AddressPolicy([entry])


def test_random_private_addresses_are_never_public():
    pick = random.Random(7)
    for _ in range(2_000):
        for base, bits in (("10.0.0.0", 24), ("127.0.0.0", 24), ("192.168.0.0", 16), ("169.254.0.0", 16)):
            assert forbidden_reason(IPv4Address(int(IPv4Address(base)) | pick.getrandbits(bits)))


# Deny-list, patterns, ports


def test_a_pattern_holds_for_the_names_below_a_domain_alone():
    policy, inside = AddressPolicy(["*.corp.example:9000"]), ip_address("10.1.2.3")
    for host in ("a.corp.example", "A.B.Corp.Example"):
        assert policy.target_refusal(host, 9000) is None
        assert policy.refusal(host, inside, 9000) is None
        assert policy.refusal(host, inside, 80)
    for host in ("corp.example", ".corp.example", "acorp.example", "a.corp.example.evil.example", "a.corp.example."):
        assert policy.refusal(host, inside, 9000), host


@pytest.mark.parametrize(
    "host", ["bad.example", "BAD.example", "bad.example.", "a.worse.example", "a.b.worse.example."]
)
@pytest.mark.parametrize("allow", [[], ["bad.example:80", "*.worse.example:80", "0.0.0.0/0:80"]])
def test_a_denied_host_is_denied_whatever_is_allowed(host, allow):
    policy = AddressPolicy(allow, deny=["bad.example", "*.worse.example"])
    assert "http_deny" in policy.target_refusal(host, 80)
    assert "http_deny" in policy.refusal(host, ip_address("93.184.216.34"), 80)
    assert policy.target_refusal("worse.example", 80) is None
    assert policy.target_refusal("notbad.example", 80) is None


@pytest.mark.parametrize(
    ("entry", "address"),
    [("93.184.216.0/24", "93.184.216.34"), ("93.184.216.34", "93.184.216.34"), ("2a00:1450::/32", "2a00:1450::1"),
     ("[2a00:1450::1]", "2a00:1450::1"), ("10.0.0.0/8", "10.1.2.3")],
)  # fmt: skip
def test_a_denied_network_is_denied_whatever_is_allowed(entry, address):
    policy = AddressPolicy(["0.0.0.0/0:80", "[::/0]:80", "any.example:80"], deny=[entry])
    assert "http_deny" in policy.refusal("any.example", ip_address(address), 80)
    assert "http_deny" in policy.target_refusal(address, 80)
    assert policy.refusal("any.example", ip_address("1.1.1.1"), 80) is None


@pytest.mark.parametrize(
    "entry", ["", "*", "*.", "bad.example:80", "127.1", "10.0.0.1/8", "a b", "http://bad.example"]
)
def test_a_bad_entry_of_the_deny_list_is_a_clear_settings_error(entry):
    with pytest.raises(SettingsError, match="http_deny"):
        AddressPolicy(deny=[entry])


def test_other_ports_of_public_addresses_by_setting():
    policy = AddressPolicy(ports=[443, 8443])
    assert policy.target_refusal("public.example", 8443) is None
    assert policy.refusal("public.example", ip_address("93.184.216.34"), 8443) is None
    assert policy.refusal("public.example", ip_address("10.1.2.3"), 8443)
    assert "443, 8443" in policy.target_refusal("public.example", 80)


# Against two other libraries: where we differ, we are the stricter

MICROSOFT = AntiSSRFPolicy(PolicyConfigOptions.EXTERNAL_ONLY_LATEST)
NETWORKS = {
    *(block.network for block in DEFAULT_DENIED.blocks),
    *map(ip_network, IPAddressRanges.recommended_latest),
    *(network for network, _ in (*table._DENIED_IPV4, *table._DENIED_IPV6)),
    table._UNICAST_IPV6,
}


def edges(network):
    """The addresses at both ends of a network, inside and outside."""
    first, last = int(network[0]), int(network[-1])
    around = (first - 1, first, last, last + 1)
    return {type(network[0])(number) for number in around if 0 <= number < 2**network.max_prefixlen}


# The edges of every network that any of the three knows, and addresses anywhere.
EDGES = sorted(set().union(*map(edges, NETWORKS)), key=lambda edge: (edge.version, edge))
ANY_ADDRESS = (
    st.sampled_from(EDGES)
    | st.integers(0, 2**32 - 1).map(IPv4Address)
    | st.integers(0, 2**128 - 1).map(IPv6Address)
    | st.integers(2**125, 2**126 - 1).map(IPv6Address)
    | st.sampled_from([ip_address(text) for text in FORBIDDEN + PUBLIC if "%" not in text])
)


def others_forbid(address):
    return (
        DEFAULT_DENIED.classify(address).blocked,
        not MICROSOFT._is_str_ip_address_connection_allowed(str(address)),  # its public calls all dial
    )


@pytest.mark.parametrize("text", ["127.0.0.1", "::1", "10.1.2.3", "169.254.169.254", "fd00::1", "224.0.0.1"])
def test_both_others_are_at_work(text):
    assert others_forbid(ip_address(text)) == (True, True)


@given(ANY_ADDRESS)
def test_whatever_another_library_forbids_is_forbidden(address):
    if any(others_forbid(address)):
        assert forbidden_reason(address), address


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_at_the_edges_of_every_special_network_we_are_never_laxer(edge):
    if any(others_forbid(edge)):
        assert forbidden_reason(edge)


@pytest.mark.parametrize("text", [text for text in PUBLIC if ip_address(text).version == 4])
def test_public_ipv4_is_public_to_everyone(text):
    assert forbidden_reason(ip_address(text)) is None
    assert others_forbid(ip_address(text)) == (False, False)


def test_we_are_stricter_where_both_others_let_something_through():
    """Translated and mapped addresses are refused even if what is inside is public: nobody needs them in a URL."""
    for text in ("::ffff:0:127.0.0.1", "2606:4700::5efe:7f00:1", "4000::1"):
        assert forbidden_reason(ip_address(text))
        assert not all(others_forbid(ip_address(text)))
