import pytest

from pipeline.label_guard import content_policy, is_own_request


@pytest.mark.parametrize(
    ("host_header", "host", "own"),
    [
        ("127.0.0.1:8100", "127.0.0.1", True),
        ("localhost:9000", "127.0.0.1", True),  # through ssh -L 9000:localhost:8100
        ("LOCALHOST", "127.0.0.1", True),
        ("[::1]:8100", "127.0.0.1", True),
        ("192.168.0.7:8100", "127.0.0.1", False),
        ("192.168.0.7:8100", "0.0.0.0", True),  # an address needs no DNS
        ("box.lan:8100", "0.0.0.0", False),
        ("box.lan:8100", "box.lan", True),
        ("evil.example", "127.0.0.1", False),
        ("127.0.0.1.evil.example", "127.0.0.1", False),
        ("localhost.evil.example", "0.0.0.0", False),
        ("", "127.0.0.1", False),
        ("a:b:c", "127.0.0.1", False),
    ],
)
def test_a_page_answers_to_addresses_and_its_own_name_only(host_header: str, host: str, own: bool) -> None:
    assert is_own_request(host_header, None, host=host) is own


@pytest.mark.parametrize(
    ("origin", "own"),
    [
        ("http://localhost:8100", True),
        ("http://localhost:8101", False),
        ("http://127.0.0.1:8100", False),
        ("https://evil.example", False),
        ("null", False),
        ("", False),
    ],
)
def test_a_request_comes_from_the_page_it_asks(origin: str, own: bool) -> None:
    assert is_own_request("localhost:8100", origin, host="127.0.0.1") is own


def test_the_policy_names_each_script_and_style_by_its_hash() -> None:
    policy = content_policy("<style>a</style><script>b</script><script>c</script>")
    assert policy.count("'sha256-") == 3
    assert "unsafe" not in policy
