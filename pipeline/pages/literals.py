"""Read JSON as pages write it: strict where it is, and as a JavaScript literal where it is not.

Broken JSON-LD and state blobs share their faults: comments, trailing commas, single quotes, bare keys, `undefined`,
control characters, entities, code after the value. Nothing is ever executed: what is no literal is an error.
"""

import base64
import binascii
import html
import json
import math
import re
from typing import Any
from urllib.parse import unquote

MAX_DEPTH = 400
MAX_CHARS = 16 * 2**20
MAX_MENDED_CHARS = 2**20
MAX_DOCUMENTS = 64

_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"(?:[\s\ufeff]+|//[^\n]*|/\*.*?\*/|<!--|-->|<!\[CDATA\[|\]\]>)*", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
_NAME = re.compile(r"[^\W\d][\w$.]*|\$[\w$.]*")
_STRINGS = {
    '"': re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL),
    "'": re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL),
    "`": re.compile(r"`((?:[^`\\]|\\.)*)`", re.DOTALL),
}
# A quote that no separator follows is part of the text: `"wheels": "17" alloy"`.
_LOOSE_STRING = re.compile(r'"((?:[^"\\]|\\.|"(?!\s*[,:}\]]))*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(u\{[0-9a-fA-F]{1,6}\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|\r\n|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": "", "\r\n": ""}
_WORDS = {"true": True, "false": False, "null": None, "undefined": None, "NaN": None, "Infinity": None}
_CONSTANTS = re.compile(r"(?:!\s*([01])|void\s+0)\b")
_WRAPPERS = {"JSON.parse", "decodeURIComponent", "atob", "unescape", "Object.freeze", "Date", "String"}
_CALL = re.compile(r"(?:window\.)?([A-Za-z_$.]+)\s*\(")


class LiteralError(ValueError):
    """No literal begins there; `end` is how far the text was read."""

    def __init__(self, message: str, end: int) -> None:
        super().__init__(message)
        self.end = end


def read_value(text: str, start: int = 0) -> Any:
    """Read the value that begins at `start`; what follows it is not looked at.

    Raises:
        LiteralError: no literal begins there, or it is nested too deeply.
    """
    text = text[:MAX_CHARS] if len(text) > MAX_CHARS else text
    start = _skip(text, start)
    try:
        value, _end = _strict(text, start)
    except ValueError:
        try:
            return _LiteralReader(text, start).read()
        except LiteralError as error:
            if error.end >= len(text):
                raise  # what does not end does not end loosely either
            return _LiteralReader(text, start, loose=True).read()
    return value


def read_documents(text: str) -> list[Any]:
    """Read every value of a JSON-LD script, mending what can be mended; an unreadable rest is left out."""
    text = text[:MAX_CHARS]
    if "{&quot;" in text.replace(" ", "")[:200] or text.lstrip().startswith(("{&#34;", "[{&#34;")):
        text = html.unescape(text)
    documents: list[Any] = []
    position = _skip(text, 0)
    while position < len(text) and len(documents) < MAX_DOCUMENTS:
        try:
            value, position = _strict(text, position)
        except ValueError:
            value, position = _mended(text, position)
        if position < 0:
            break
        documents.append(value)
        position = _skip(text, position)
        while position < len(text) and text[position] in ",;":
            position = _skip(text, position + 1)
    return documents


def _mended(text: str, start: int) -> tuple[Any, int]:
    for loose in (False, True):
        reader = _LiteralReader(text, start, loose=loose)
        try:
            return reader.read(), reader.position
        except LiteralError as error:
            if error.end >= len(text):
                break
    return None, -1


def _strict(text: str, start: int) -> tuple[Any, int]:
    if text[start : start + 1] not in ("{", "["):
        raise ValueError("no object or array begins here")
    try:
        return _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position


class _LiteralReader:
    """A reader of JavaScript literals with its own stack, so that depth costs no recursion."""

    def __init__(self, text: str, start: int, *, loose: bool = False) -> None:
        self.text = text
        self.position = start
        self._loose = loose

    def read(self) -> Any:
        """Read one value; `position` then stands behind it.

        Raises:
            LiteralError: there is none.
        """
        try:
            return self._read()
        except LiteralError:
            raise
        except ValueError as error:
            raise LiteralError(str(error), self.position) from error

    def _read(self) -> Any:
        if len(self.text) - self.position > MAX_MENDED_CHARS:
            raise ValueError(f"more than {MAX_MENDED_CHARS} characters that are no JSON")
        outer: list[Any] = []
        stack: list[list[Any] | dict[str, Any]] = [outer]
        keys: list[str | None] = [None]
        while True:
            self.position = _skip(self.text, self.position)
            mark = self.text[self.position : self.position + 1]
            inner = stack[-1]
            if mark in ("}", "]") and mark:
                self._close(mark, inner, outer)
                stack.pop()
                keys.pop()
            elif mark == "," and inner is not outer:
                self.position += 1
                keys[-1] = None
                continue
            elif isinstance(inner, dict) and keys[-1] is None:
                keys[-1] = self._key()
                continue
            else:
                value = self._value(mark)
                if isinstance(inner, dict):
                    inner[str(keys[-1])] = value
                else:
                    inner.append(value)
                keys[-1] = None
                if mark in ("{", "["):
                    stack.append(value)
                    keys.append(None)
                    if len(stack) > MAX_DEPTH:
                        raise ValueError(f"nested more than {MAX_DEPTH} deep")
            if len(stack) == 1:
                return outer[0]

    def _close(self, mark: str, inner: list[Any] | dict[str, Any], outer: list[Any]) -> None:
        if inner is outer or isinstance(inner, dict) != (mark == "}"):
            raise ValueError(f"{mark!r} at {self.position} closes nothing")
        self.position += 1

    def _key(self) -> str:
        mark = self.text[self.position : self.position + 1]
        if mark in _STRINGS:
            key = self._string(mark)
        elif found := _NAME.match(self.text, self.position) or _NUMBER.match(self.text, self.position):
            key, self.position = found.group(), found.end()
        else:
            raise ValueError(f"expected a key at {self.position}, found {mark!r}")
        self.position = _skip(self.text, self.position)
        if not self.text.startswith(":", self.position):
            raise ValueError(f"expected ':' at {self.position}")
        self.position += 1
        return key

    def _value(self, mark: str) -> Any:
        if mark == "{" or mark == "[":
            self.position += 1
            return {} if mark == "{" else []
        if mark in _STRINGS:
            return self._string(mark)
        if found := _NUMBER.match(self.text, self.position):
            self.position = found.end()
            return _number(found.group())
        if found := _CONSTANTS.match(self.text, self.position):
            self.position = found.end()
            return found.group(1) == "0" if found.group(1) else None
        return self._word()

    def _word(self) -> Any:
        if self.text.startswith("new ", self.position):
            self.position = _skip(self.text, self.position + 4)
        if (call := _CALL.match(self.text, self.position)) and call.group(1) in _WRAPPERS:
            self.position = _skip(self.text, call.end())
            argument = _LiteralReader(self.text, self.position, loose=self._loose)
            if self.text.startswith(tuple(_STRINGS), self.position):
                value = self._string(self.text[self.position])
            elif call.group(1) == "Object.freeze" and self.text.startswith(("{", "["), self.position):
                value = argument.read()
                self.position = argument.position
            else:
                raise ValueError(f"an argument at {self.position} is no literal")
            self.position = _skip(self.text, self.position)
            if not self.text.startswith(")", self.position):
                raise ValueError(f"expected ')' at {self.position}")
            self.position += 1
            return _unwrapped(call.group(1), value)
        if (found := _NAME.match(self.text, self.position)) and found.group() in _WORDS:
            self.position = found.end()
            return _WORDS[found.group()]
        raise ValueError(f"no literal at {self.position}")

    def _string(self, quote: str) -> str:
        pattern = _LOOSE_STRING if self._loose and quote == '"' else _STRINGS[quote]
        found = pattern.match(self.text, self.position)
        if found is None:
            raise ValueError(f"the text that begins at {self.position} does not end")
        self.position = found.end()
        return _unescape(found.group(1))


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    joined = _ESCAPE.sub(_escaped, text)
    # Two halves of a surrogate pair, escaped one by one, make one character.
    return joined.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _escaped(found: re.Match[str]) -> str:
    mark = found.group(1)
    if mark[0] in "ux" and len(mark) > 1:
        code = int(mark[1:].strip("{}"), 16)
        return chr(code) if code <= 0x10FFFF else "\ufffd"
    return _ESCAPED.get(mark, mark)


def _number(text: str) -> int | float | None:
    try:
        if text.lstrip("+-")[:2].lower() == "0x":
            return int(text, 16)
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return int(value) if text.lstrip("+-").isdigit() and abs(value) < 2**53 else value


def _unwrapped(call: str, value: Any) -> Any:
    if call == "JSON.parse":
        return read_json_text(value)
    if call == "decodeURIComponent" or call == "unescape":
        return read_json_text(unquote(value))
    if call == "atob":
        try:
            return read_json_text(base64.b64decode(value, validate=False).decode("utf-8", "replace"))
        except (binascii.Error, ValueError) as error:
            raise ValueError("the argument of atob is no base64") from error
    return value


def read_json_text(text: str) -> Any:
    """Return the JSON that `text` holds, or `text` itself where it holds none."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    return read_value(text)
