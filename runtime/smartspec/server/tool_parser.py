"""Tool calls out of an answer while it streams: content stays content, markup never is, half a mark is held back."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from smartspec.server.tool_call_json import ToolCallReader
from smartspec.server.tool_formats import ToolFormat

_SEPARATORS = " \t\r\n,;[]"
_NAMED = re.compile(r"([\w.-]{1,64})(?:\[CALL_ID\][\w-]*)?(?:\[ARGS\])?\s*(\{)?")


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What is new of the *index*-th call: with its beginning, `id` and `name`; then pieces of its `arguments`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What new text amounts to: content to show, and news of calls, one piece for each at most."""

    content: str = ""
    calls: tuple[CallDelta, ...] = ()


class _Place(Enum):
    BEGINNING = "whether the answer is bare JSON is not known yet"
    CONTENT = "a mark may come"
    BETWEEN = "after a mark, or between calls"
    CALL = "in a call's JSON"
    JUNK = "what stands where a call should is content, up to the mark that ends it"
    PLAIN = "content to the end"


class ToolParser:
    """Reads one answer in *tool_format*. *names* are the tools there are; *new_id* makes ids of calls.

    Where calls are bare JSON, an answer is calls only if the first one names a tool; else it is content, as it stands.
    Without *parallel* only the first call counts.
    """

    def __init__(
        self, tool_format: ToolFormat, names: Collection[str], new_id: Callable[[], str], *, parallel: bool = True
    ) -> None:
        self.num_calls = 0
        self._format = tool_format
        self._names = names
        self._new_id = new_id
        self._parallel = parallel
        self._place = _Place.CONTENT if tool_format.mark else _Place.BEGINNING
        self._buffer = ""
        self._unproven = ""  # read, but content still if no tool is named
        self._reader = ToolCallReader()
        self._is_announced = False
        self._drops = False  # the rest of a call that broke off after its name was told
        self._content: list[str] = []
        self._news: dict[int, CallDelta] = {}

    def push(self, text: str) -> Parsed:
        """What *text* adds."""
        self._buffer += text
        steps = {
            _Place.BEGINNING: self._read_beginning,
            _Place.CONTENT: self._read_content,
            _Place.BETWEEN: self._read_between,
            _Place.CALL: self._read_call,
            _Place.JUNK: self._read_junk,
            _Place.PLAIN: self._read_plain,
        }
        while self._buffer and steps[self._place]():
            pass
        return self._taken()

    def finish(self) -> Parsed:
        """What was held back, when nothing more comes."""
        rest = self._unproven + self._buffer
        if self._format.optional_mark:
            rest = rest.replace(self._format.optional_mark, "")
        in_markup = self._place in (_Place.BETWEEN, _Place.CALL) and bool(self._format.mark or self.num_calls)
        # White space beside calls is the markup's own.
        if not in_markup and (rest.strip() or not self.num_calls) and not self._drops:
            self._content.append(rest)
        self._buffer = self._unproven = ""
        return self._taken()

    def _taken(self) -> Parsed:
        parsed = Parsed("".join(self._content), tuple(self._news.values()))
        self._content, self._news = [], {}
        return parsed

    # Each of these reads what it can from the buffer; False says that it needs more text.

    def _read_beginning(self) -> bool:
        mark, text = self._format.optional_mark, self._buffer.lstrip()
        if mark and text.startswith(mark):
            text = text[len(mark) :].lstrip()
        elif not text or (mark and mark.startswith(text)):
            return False
        if not text:
            return False
        if text[0] in "{[":
            self._unproven, self._buffer, self._place = self._buffer[: -len(text)], text, _Place.BETWEEN
            if mark:
                self._unproven = self._unproven.replace(mark, "")
        else:
            self._place = _Place.PLAIN
        return True

    def _read_plain(self) -> bool:
        mark = self._format.optional_mark
        text = self._buffer.replace(mark, "") if mark else self._buffer
        sure = len(text) - _overlap(text, mark)
        self._content.append(text[:sure])
        self._buffer = text[sure:]
        return False

    def _read_content(self) -> bool:
        return self._read_to(self._format.mark, _Place.BETWEEN)

    def _read_junk(self) -> bool:
        mark = self._format.end_mark or self._format.mark
        return self._read_to(mark, _Place.CONTENT if self._format.end_mark else _Place.BETWEEN)

    def _read_to(self, mark: str, place: _Place) -> bool:
        """Content up to *mark*, after which *place* is next. White space before it may be markup and is held back."""
        text, found, rest = self._buffer.partition(mark)
        if found:
            self._show(text.rstrip())
            self._buffer, self._place, self._drops = rest, place, False
            return True
        sure = len(text[: len(text) - _overlap(text, mark)].rstrip())
        self._show(text[:sure])
        self._buffer = text[sure:]
        return False

    def _show(self, text: str) -> None:
        if not self._drops:
            self._content.append(text)

    def _read_between(self) -> bool:
        for mark in self._format.marks:
            if self._buffer.startswith(mark):
                self._skip(len(mark))
                if mark == self._format.end_mark:
                    self._place = _Place.CONTENT
                return True
        if any(mark.startswith(self._buffer) for mark in self._format.marks):
            return False
        if self._buffer[0] in _SEPARATORS:
            self._skip(1)
        elif self._buffer[0] == "{":
            self._begin(ToolCallReader())
        elif self._format.mark and not self._format.end_mark and (named := _NAMED.match(self._buffer)):
            if named.group(2):
                self._skip(named.end() - 1)
                self._begin(ToolCallReader(named.group(1)))
            elif named.end() == len(self._buffer) or self._buffer[named.end()] == "[":
                return False  # the name, or what stands between it and its arguments, may not be whole yet
            else:
                self._give_up()
        else:
            self._give_up()
        return True

    def _skip(self, count: int) -> None:
        if not self._format.mark and not self.num_calls:
            self._unproven += self._buffer[:count]
        self._buffer = self._buffer[count:]

    def _begin(self, reader: ToolCallReader) -> None:
        self._reader, self._is_announced, self._place = reader, False, _Place.CALL

    def _read_call(self) -> bool:
        reader = self._reader
        count = reader.push(self._buffer)
        if not self._is_announced:
            self._unproven += self._buffer[:count]
        self._buffer = self._buffer[count:]
        if not self._is_announced and reader.name is not None and not reader.is_broken:
            if not self._format.mark and reader.name not in self._names:
                self._give_up()
                return True
            self._announce(reader.name)
        if self._is_announced and (arguments := reader.take_arguments()):
            index = self.num_calls - 1
            self._tell(CallDelta(index, arguments=arguments))
        if reader.is_done:
            self._place = _Place.BETWEEN
        elif reader.is_broken:
            self._give_up()
        return True

    def _announce(self, name: str) -> None:
        self._is_announced, self._unproven = True, ""
        self.num_calls += 1
        self._tell(CallDelta(self.num_calls - 1, self._new_id(), name))

    def _tell(self, news: CallDelta) -> None:
        if news.index and not self._parallel:
            return
        known = self._news.get(news.index)
        if known is not None:
            news = CallDelta(known.index, known.id, known.name, known.arguments + news.arguments)
        self._news[news.index] = news

    def _give_up(self) -> None:
        """What stands here is no call: it is content, unless the call has been told of already."""
        self._drops = self._is_announced and self._place is _Place.CALL and bool(self._format.mark)
        self._show(self._unproven)
        self._unproven = ""
        self._place = _Place.JUNK if self._format.mark else _Place.PLAIN


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of *text* that is a proper beginning of *mark*."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
