import pytest

from pipeline.sites import PageReading
from tests.pipeline.site_reading import CAR_PAGE, read

BLOCKS = {
    "datadome": """<html><head><title>cars.example</title></head><body><script>var
dd={'rt':'c','cid':'x','hsh':'y','t':'bv',
'host':'geo.captcha-delivery.com'}</script><script
src="https://ct.captcha-delivery.com/c.js"></script></body></html>""",
    "cloudflare": """<!DOCTYPE html><html><head><title>Just a moment...</title></head><body><noscript>Enable
JavaScript and
cookies to continue</noscript><script>(function(){window._cf_chl_opt = {cvId: '3'};}())</script></body></html>""",
    "cloudflare_1020": """<html><head><title>Access denied | cars.example used Cloudflare to restrict
access</title></head>
<body><div id="cf-wrapper"><div id="cf-error-details"><h1>Error 1020</h1></div></div></body></html>""",
    "perimeterx": """<html><head><title>Access to this page has been denied.</title></head><body><div
id="px-captcha"></div>
<script>window._pxAppId = 'PX1';</script><p>Press &amp; Hold to confirm you are a human</p></body></html>""",
    "incapsula": """<html><head><META NAME="robots" CONTENT="noindex"></head><body><iframe id="main-iframe"
src="/_Incapsula_Resource?SWUDNSAI=31&xinfo=1&incident_id=1-2">Request unsuccessful. Incapsula incident ID:
1-2</iframe></body></html>""",
    "akamai": """<HTML><HEAD><TITLE>Access Denied</TITLE></HEAD><BODY><H1>Access Denied</H1>You don't have
permission to access
"http&#58;&#47;&#47;cars" on this server.<P>Reference&#32;&#35;18&#46;1
https://errors.edgesuite.net/18.1</BODY></HTML>""",
    "hcaptcha": """<html><head><title>Cars</title></head><body><form action="/verify"><div class="h-captcha"
data-sitekey="1"></div>
<button>Continue</button></form></body></html>""",
    "recaptcha": """<html><head><title>One more step</title></head><body><h1>Please verify you are human</h1>
<div class="g-recaptcha" data-sitekey="1"></div><script
src="https://www.google.com/recaptcha/api.js"></script></body></html>""",
    "aws": "<html><title>Human Verification</title><body><script>window.gokuProps = {}</script></body></html>",
    "imperva": "<html><title>Pardon Our Interruption</title><body><h1>Pardon Our Interruption</h1></body></html>",
    "turnstile": '<html><p>Checking your browser</p><div class="cf-turnstile" data-sitekey="1"></div></html>',
    "robot": "<html><title>Robot check</title><body><p>Are you a robot?</p><img src=/captcha.png></body></html>",
    "login": """<html><head><title>Log in - Cars</title></head><body><form method=post><input name=user>
<input type="password" name=pw><button>Log in</button></form></body></html>""",
    "login_de": """<html><head><title>Anmelden</title></head><body><h1>Bitte anmelden</h1><form><input
type='password'></form>
</body></html>""",
    "login_markup": """<html><head><title>Sign in</title><script type="application/ld+json">{"@type": "Organization",
"name": "Cars"}</script></head><body><form><input type=email><input type=password></form></body></html>""",
}  # fmt: skip


@pytest.mark.parametrize("status", [200, 403, 429, 503])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_page_is_named_whatever_its_status(name: str, status: int) -> None:
    assert read(BLOCKS[name], status=status) == PageReading("failed", "block_page", None, ())


def test_a_redirect_to_a_login_without_a_password_field_is_a_block_page() -> None:
    html = "<html><title>Sign in to continue</title><form action=/x><input type=email></form></html>"
    assert read(html, url="https://cars.example.org/login?next=/listing/7").error == "block_page"


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://www.google.com/recaptcha/api.js"></script><div class="g-recaptcha"></div>',
        '<script src="https://js.hcaptcha.com/1/api.js"></script><div class="h-captcha"></div>',
        '<script src="/cdn-cgi/challenge-platform/scripts/jsd/main.js"></script>',
        '<script src="https://js.datadome.co/tags.js"></script><script>window._pxAppId="PX"</script>',
        '<script src="/_Incapsula_Resource?SWJIYLWA=1"></script>',
        "<form><h2>Log in</h2><input type=password></form>",
        "<p>Access denied? Are you a robot? Our captcha is a joke.</p>",
    ],
)
def test_a_listing_page_that_carries_a_guard_s_tags_is_a_listing(tag: str) -> None:
    assert read(CAR_PAGE.replace(b"<p>", tag.encode() + b"<p>")).outcome == "found"
    hub = "<html><title>Used cars | Cars</title>" + tag + "<p>" + "A used car near you. " * 200 + "</p></html>"
    assert read(hub).error == "no_listing"
