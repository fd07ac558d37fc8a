"""One tool call in JSON, read while it comes: its name as soon as it is there, its arguments piece by piece."""

import json
from enum import Enum

NAME_KEY = "name"
ARGUMENTS_KEYS = frozenset({"arguments", "parameters"})
_SPACE = " \t\r\n"


class _Place(Enum):
    BEFORE_OBJECT = 0
    BEFORE_KEY = 1
    IN_KEY = 2
    BEFORE_COLON = 3
    BEFORE_VALUE = 4
    IN_VALUE = 5
    AFTER_VALUE = 6


class ToolCallReader:
    """Reads one `{"name": ..., "arguments": {...}}`, its keys in any order, others skipped.

    `name` is None until it is known. `is_done` after the closing brace, `is_broken` when the text is no such object.
    With a *name* to begin with, the object itself is the arguments.
    """

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.is_done = False
        self.is_broken = False
        self._is_bare = name is not None
        self._place = _Place.BEFORE_VALUE if self._is_bare else _Place.BEFORE_OBJECT
        self._key = "arguments" if self._is_bare else ""
        self._value: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._has_arguments = False
        self._fresh: list[str] = []

    def push(self, text: str) -> int:
        """Read on in *text*; how many of its characters were read, all of them unless the object ended."""
        for count, character in enumerate(text):
            self._read(character)
            if self.is_done or self.is_broken:
                return count + 1
        return len(text)

    def take_arguments(self) -> str:
        """The text of the arguments that came since the last call; none before the name is known."""
        if self.name is None:
            return ""
        taken = "".join(self._fresh)
        self._fresh.clear()
        return taken

    def _read(self, character: str) -> None:
        place = self._place
        if place is _Place.IN_VALUE:
            self._read_value(character)
        elif place is _Place.IN_KEY:
            self._read_key(character)
        elif character in _SPACE:
            pass
        elif place is _Place.BEFORE_VALUE:
            self._begin_value(character)
        elif place is _Place.BEFORE_OBJECT and character == "{":
            self._place = _Place.BEFORE_KEY
        elif place is _Place.BEFORE_KEY and character == '"':
            self._place, self._value = _Place.IN_KEY, [character]
        elif place is _Place.BEFORE_COLON and character == ":":
            self._place = _Place.BEFORE_VALUE
        elif place is _Place.AFTER_VALUE and character == ",":
            self._place = _Place.BEFORE_KEY
        elif place in (_Place.AFTER_VALUE, _Place.BEFORE_KEY) and character == "}":
            self._end_object()
        else:
            self.is_broken = True

    def _read_key(self, character: str) -> None:
        self._value.append(character)
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            key = _parsed("".join(self._value))
            self._key = key if isinstance(key, str) else ""
            self._place = _Place.BEFORE_COLON

    def _begin_value(self, character: str) -> None:
        if character in ",:}]" or (self._is_bare and character != "{"):
            self.is_broken = True
            return
        self._place = _Place.IN_VALUE
        self._value, self._depth, self._in_string, self._escaped = [], 0, False, False
        self._streams = self._key in ARGUMENTS_KEYS and character == "{"
        self._read_value(character)

    def _read_value(self, character: str) -> None:
        if self._in_string:
            self._keep(character)
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
                if not self._depth:
                    self._end_value()
        elif not self._depth and character in ",}" + _SPACE:  # a number, true, false or null has ended
            self._end_value()
            self._read(character)
        else:
            self._keep(character)
            if character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self._end_value()

    def _keep(self, character: str) -> None:
        (self._fresh if self._streams else self._value).append(character)

    def _end_value(self) -> None:
        self._place = _Place.AFTER_VALUE
        if self._streams:
            self._has_arguments = True
            if self._is_bare:
                self.is_done = True
        elif self._key == NAME_KEY:
            name = _parsed("".join(self._value))
            if isinstance(name, str) and name:
                self.name = name
            else:
                self.is_broken = True
        elif self._key in ARGUMENTS_KEYS:
            # Some models put the object into a string once more; what is neither is no arguments.
            text = _parsed("".join(self._value))
            if isinstance(text, str) and isinstance(_parsed(text), dict):
                self._has_arguments = True
                self._fresh.append(text)

    def _end_object(self) -> None:
        if self.name is None:
            self.is_broken = True
            return
        if not self._has_arguments:
            self._fresh.append("{}")
        self.is_done = True


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
