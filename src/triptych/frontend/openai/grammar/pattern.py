"""Counts the cost of compiling a regular expression, without compiling it. Pure, and linear in its length."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

_GROUP = re.compile(r"\?(?:[:]|P?<[A-Za-z_]\w*>)")
_BRACES = re.compile(r"\{\s*([0-9]*)\s*(?:(,)\s*([0-9]*)\s*)?\}")
_ESCAPE = re.compile(r"u\{[0-9A-Fa-f]{1,6}\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|c[A-Za-z]|.", re.DOTALL)
_SIMPLE_REPEATS = "*+?"
MAX_GROUP_DEPTH = 64
"""The limit on nested groups, because compilers of patterns use recursion."""


class PatternError(ValueError):
    """Raised for a pattern that cannot be counted, or is over a limit. The message says which, and where."""

    def __init__(self, reason: str, limit: str = "") -> None:
        """``limit`` is the name of the limit that the pattern exceeds."""
        super().__init__(reason)
        self.limit = limit


@dataclass(slots=True)
class _Group:
    """An open group: the size of its finished items, and of its last item, which a repetition may still follow."""

    done: int = 0
    last: int | None = None
    opened_at: int = 0

    def begin(self, size: int) -> None:
        """Starts an item of ``size`` characters; the one before it is finished."""
        self.done, self.last = self.size, size

    @property
    def size(self) -> int:
        return self.done + (self.last or 0)


def pattern_size(pattern: str, *, max_size: int, max_repeats: int) -> int:
    """Returns the number of characters of ``pattern`` when every repetition is written out.

    A class counts as one character, plus its own text if that is long. Alternatives add up. Raises PatternError for a
    size or a repetition above its limit, for syntax that cannot be counted, and for constructs that grammars do not
    have: look-around, references to groups, and classes by Unicode property.
    """
    groups = [_Group()]
    at = 0
    while at < len(pattern):
        at = _step(pattern, at, groups, max_repeats)
        if groups[-1].size > max_size:
            raise PatternError(
                f"it stands for more than {max_size:,} characters when its repetitions are written out",
                "max_pattern_size",
            )
    if len(groups) > 1:
        raise PatternError(f"the group at character {groups[-1].opened_at + 1} is not closed")
    return groups[0].size


def _step(pattern: str, at: int, groups: list[_Group], max_repeats: int) -> int:
    """Counts one item at ``at``. Returns where the next one begins."""
    here, group = pattern[at], groups[-1]
    if here == "(":
        if len(groups) > MAX_GROUP_DEPTH:
            raise PatternError(f"the group at character {at + 1} is nested more than {MAX_GROUP_DEPTH} deep")
        groups.append(_Group(opened_at=at))
        return _group_begin(pattern, at + 1)
    if here == ")":
        if len(groups) == 1:
            raise PatternError(f"the parenthesis at character {at + 1} closes nothing")
        groups.pop()
        groups[-1].begin(max(1, group.size))
        return at + 1
    if here == "[":
        end = _class_end(pattern, at)
        group.begin(1 + (end - at) // 32)
        return end
    if here in _SIMPLE_REPEATS or _braces(pattern, at) is not None:
        return _repeat(pattern, at, group, max_repeats)
    if here in "|^$":
        group.begin(1)
        group.done, group.last = group.size, None  # nothing is left that a repetition could follow
        return at + 1
    group.begin(1)
    if pattern.startswith(("\\b", "\\B"), at):
        raise PatternError(f"\\{pattern[at + 1]} at character {at + 1}: word boundaries are not supported")
    return _escape_end(pattern, at) if here == "\\" else at + 1


def _group_begin(pattern: str, at: int) -> int:
    if not pattern.startswith("?", at):
        return at
    kind = _GROUP.match(pattern, at)
    if kind is None:
        raise PatternError(f"the group at character {at} is of a kind that is not supported, such as look-around")
    return kind.end()


def _repeat(pattern: str, at: int, group: _Group, max_repeats: int) -> int:
    """Multiplies the last item by its largest count. An open end counts as the minimum and one more."""
    if group.last is None:
        raise PatternError(f"the repetition at character {at + 1} has nothing to repeat")
    if pattern[at] in _SIMPLE_REPEATS:
        end = at + 1
    else:
        braces = _braces(pattern, at)
        assert braces is not None
        group.last *= max(1, _times(braces, max_repeats))
        end = braces.end()
    if pattern.startswith("?", end):  # a lazy repetition matches the same texts
        end += 1
    if end < len(pattern) and (pattern[end] in _SIMPLE_REPEATS or _braces(pattern, end) is not None):
        raise PatternError(f"the repetition at character {end + 1} repeats a repetition; put that into a group")
    return end


def _braces(pattern: str, at: int) -> re.Match[str] | None:
    """Matches the ``{m}``, ``{m,}``, ``{,n}`` or ``{m,n}`` at ``at``. None if the brace is just a character."""
    found = _BRACES.match(pattern, at) if pattern[at] == "{" else None
    return found if found is not None and (found[1] or found[3]) else None


def _times(braces: re.Match[str], max_repeats: int) -> int:
    """Returns the factor of a ``{m,n}``. Checks the number of digits first: a long number takes Python long."""
    place = braces.start() + 1
    numbers = [digits.lstrip("0") or "0" for digits in (braces[1], braces[3]) if digits]
    if any(len(digits) > len(str(max_repeats)) or int(digits) > max_repeats for digits in numbers):
        raise PatternError(
            f"the repetition at character {place} has a number above {max_repeats:,}", "max_schema_repeats"
        )
    minimum, maximum = int(numbers[0]) if braces[1] else 0, int(numbers[-1])
    if maximum < minimum:
        raise PatternError(f"the repetition at character {place} has its numbers the wrong way round")
    return minimum + 1 if braces[2] and not braces[3] else maximum


def _class_end(pattern: str, at: int) -> int:
    """Returns where the class that begins at ``at`` ends."""
    end = at + 2 if pattern.startswith("^", at + 1) else at + 1
    if pattern.startswith("]", at + 1):
        raise PatternError(f"the class at character {at + 1} is empty; a bracket in a class is written \\]")
    while end < len(pattern):
        if pattern[end] == "]":
            return end + 1
        begin, end = end, _member_end(pattern, end)
        if pattern.startswith("-", end) and end + 1 < len(pattern) and pattern[end + 1] != "]":
            last, end = end + 1, _member_end(pattern, end + 1)
            _check_range(pattern[begin : last - 1], pattern[last:end], begin + 1)
    raise PatternError(f"the class at character {at + 1} is not closed")


def _member_end(pattern: str, at: int) -> int:
    return _escape_end(pattern, at) if pattern[at] == "\\" else at + 1


def _check_range(first: str, last: str, place: int) -> None:
    """Raises PatternError for a range of a class whose ends are missing or in the wrong order."""
    low, high = _character(first), _character(last)
    if low is not None and last[0] == "\\" and last[1] in "dDsSwW":
        raise PatternError(f"the range {first}-{last} at character {place} ends in a class, and not in a character")
    if low is not None and high is not None and low > high:
        raise PatternError(f"the range {first}-{last} at character {place} has its ends the wrong way round")


def _character(member: str) -> str | None:
    """Returns the character of a class's member; None if the member is another escape."""
    if member[0] != "\\":
        return member
    if member[1] in "xu":
        digits = member[2:].strip("{}")
        return chr(int(digits, 16)) if digits and int(digits, 16) <= sys.maxunicode else None
    return None if member[1].isalnum() else member[1]


def _escape_end(pattern: str, at: int) -> int:
    escape = _ESCAPE.match(pattern, at + 1)
    if escape is None:
        raise PatternError("it ends in a backslash")
    kind = escape[0][0]
    if escape[0] == "c":
        raise PatternError(f"\\c at character {at + 1} is not complete")
    if kind in "pP":
        raise PatternError(
            f"\\{kind} at character {at + 1}: classes by Unicode property are not supported; list ranges, such as "
            "[A-Za-zÀ-ÿ]"
        )
    if kind in "123456789k":
        raise PatternError(f"\\{kind} at character {at + 1}: references to groups are not supported")
    return escape.end()
