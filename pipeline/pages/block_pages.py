"""Tell a page that a bot guard or a login stands in front of from a page of the site.

Asked only about pages without a listing: a listing page may embed the same scripts.
"""

import re
from urllib.parse import urlsplit

from pipeline.pages.page import Page

# Words on a page that is itself about something say little; on a nearly empty page they say all.
MAX_WALL_CHARS = 2_500
MAX_NOTHING_CHARS = 800
MAX_EMPTY_CHARS = 200
MAX_SEARCHED_CHARS = 200_000
HTTP_OK = 200
_BLOCK_STATUSES = frozenset({401, 403, 405, 429, 503})

# What only the challenge pages of the guards hold; the tags they leave on ordinary pages are not among these.
_CHALLENGE_MARKS = (
    r"(?:geo|ct)\.captcha-delivery\.com",
    r"DataDome (?:Device Check|CAPTCHA)",
    r"_cf_chl_(?:opt|ctx)",
    r"cf-browser-verification",
    r"id=[\"']cf-(?:challenge|error-details|wrapper)",
    r"/cdn-cgi/l/chk_",
    r"cf-challenge-running",
    r"challenge-error-text",
    r"cdn-cgi/challenge-platform/h/[bg]/orchestrate",
    r"id=[\"']px-captcha",
    r"captcha\.px-c(?:dn|loud)\.net",
    r"captcha\.perimeterx\.net",
    r"_pxBlockedUrl",
    r"Incapsula incident ID",
    r"_Incapsula_Resource\?[^\"'>]{0,200}incident_id",
    r"errors\.edgesuite\.net",
    r"sec-if-cpt-container",
    r"id=[\"']sec-cpt-if",
    r"window\.gokuProps",
    r"AwsWafCaptcha",
    r"captcha\.awswaf\.com",
    r"distil_r_captcha|distilIdentificationBlock",
    r"sucuri_cloudproxy_js|Sucuri WebSite Firewall",
    r"Vercel Security Checkpoint",
    r"/sorry/index\?continue=",
    r"queue-it\.net/\?c=",
)
# Tags that stand on ordinary pages too; alone on an empty page they are the page.
_GUARD_TAGS = (
    r"token\.awswaf\.com",
    r"KPSDK|KP_UIDz",
    r"arkoselabs\.com",
    r"_Incapsula_Resource",
    r"_pxAppId",
    r"cdn-cgi/challenge-platform",
    r"datadome\.co",
    r"geetest",
)
_WALL_PHRASES = (
    r"just a moment",
    r"attention required",
    r"one more step",
    r"checking (?:if the site|your browser)",
    r"verify(?:ing)? (?:that )?you(?: are|'re) (?:a )?(?:human|not a)",
    r"access (?:to this page has been )?denied",
    r"you don't have permission to access",
    r"pardon our interruption",
    r"are you a (?:robot|human)",
    r"i(?:'m| am) not a robot",
    r"robot check",
    r"not a (?:ro)?bot\b",
    r"bot (?:detected|detection|protection)",
    r"human verification",
    r"security (?:check|checkpoint|verification)\b",
    r"unusual (?:traffic|activity)",
    r"automated (?:access|requests|queries)",
    r"enable javascript and cookies",
    r"press (?:&amp;|&|and) hold",
    r"you have been blocked",
    r"request (?:blocked|unsuccessful)",
    r"captcha",
    r"ddos protection by",
    r"sind sie ein (?:mensch|roboter)",
    r"kein roboter",
    r"zugriff (?:verweigert|blockiert)",
    r"acc\u00e8s (?:refus\u00e9|bloqu\u00e9)",
    r"pas un robot",
    r"no (?:eres|soy) un robot",
    r"acceso denegado",
    r"accesso negato",
)
_LOGIN_PHRASES = (
    r"^\W{0,3}(?:please |bitte |you (?:must|need to) )?(?:log|sign)[ -]?(?:in|on|into)\b",
    r"\blog ?in\b",
    r"\bsign in\b",
    r"anmelde\w*",
    r"einloggen",
    r"connexion",
    r"se connecter",
    r"identifiez",
    r"iniciar sesi\w+",
    r"acceder",
    r"accedi\b",
    r"inloggen",
    r"logga? inn?\b",
    r"zaloguj",
    r"\u0432\u043e\u0439\u0442\u0438",
    r"authenticat(?:e|ion required)",
)


def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_CHALLENGE = _any_of(_CHALLENGE_MARKS)
_GUARD_TAG = _any_of(_GUARD_TAGS)
_WALL_WORDS = _any_of(_WALL_PHRASES)
_LOGIN_WORDS = _any_of(_LOGIN_PHRASES)
# A server's own `Too Many Requests` is a status; under status 200 it is a wall.
_LIMIT_WORDS = re.compile(r"too many requests|rate limit(?:ed)? exceeded", re.IGNORECASE)
_CAPTCHA_WIDGET = re.compile(
    r"class=[\"'][^\"'>]{0,80}\b(?:g-recaptcha|h-captcha|cf-turnstile|frc-captcha)\b"
    r"|<iframe[^>]{0,300}(?:hcaptcha\.com|recaptcha/(?:api2|enterprise)/|captcha)"
    r"|<form[^>]{0,200}(?:captcha|challenge)",
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"<input[^>]{0,300}type\s*=\s*[\"']?password", re.IGNORECASE)
_FORM = re.compile(r"<form\b", re.IGNORECASE)
_LOGIN_PATH = re.compile(
    r"/(?:log-?in|sign-?in|auth(?:enticate)?|sso|account/login|users/sign_in|anmelden|session/new)\b"
)


def is_block_page(page: Page, status: int = 200) -> bool:
    """Tell whether a page without a listing is a bot guard's or a login's."""
    visible = page.visible_text
    if len(visible) > MAX_WALL_CHARS:
        return False
    html = page.text[:MAX_SEARCHED_CHARS]
    if _CHALLENGE.search(html):
        return True
    if len(visible) < MAX_EMPTY_CHARS and _GUARD_TAG.search(html):
        return True
    heading = f"{page.title or ''} {visible[:400]}"
    worded = bool(_WALL_WORDS.search(heading)) or (status == HTTP_OK and bool(_LIMIT_WORDS.search(heading)))
    if _CAPTCHA_WIDGET.search(html) and (worded or _is_about_nothing(visible)):
        return True
    if worded and (status in _BLOCK_STATUSES or _is_about_nothing(visible)):
        return True
    return _is_login(page, html, heading)


def _is_about_nothing(visible: str) -> bool:
    return len(visible) < MAX_NOTHING_CHARS


def _is_login(page: Page, html: str, heading: str) -> bool:
    named = bool(_LOGIN_WORDS.search(page.title or "") or _LOGIN_WORDS.search(heading[:200]))
    if _PASSWORD.search(html):
        return named or _is_about_nothing(page.visible_text) or _on_login_path(page.url)
    return bool(_FORM.search(html)) and _on_login_path(page.url) and bool(_LOGIN_WORDS.search(heading))


def _on_login_path(url: str) -> bool:
    try:
        return bool(_LOGIN_PATH.search(urlsplit(url).path.lower()))
    except ValueError:
        return False
