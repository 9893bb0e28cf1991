"""The Lua scripts of the Redis store: each is one atomic step and one round trip.

Every script names the one key it uses, so that a cluster can route it. ``TIME`` before a write
requires that the effects of a script are replicated, not its text: that is so from Redis 5 on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha1
from typing import Any, NamedTuple

from wsgigate.rules.algorithms import ALGORITHMS, Algorithm, SlidingWindow, TokenBucket, tag_of
from wsgigate.rules.quota import Quota, Verdict
from wsgigate.store import VALUE_BYTES
from wsgigate.store.redis_connections import command, is_number, packed

__all__ = [
    "GET",
    "LUA",
    "SWAP",
    "LuaScript",
    "Prepared",
    "is_flag",
    "is_value",
    "is_value_and_time",
    "prepared",
    "take_script",
    "verdicts_of",
]


# The algorithms of :mod:`wsgigate.rules.algorithms` in Lua, number by number and byte by byte.
#
# All numbers are integers below 2**53, so a double, the number type of Lua, holds each exactly.
# Each algorithm receives a state (false for none), the time in microseconds, the cost and its own
# numbers. It returns the state (the same object if unchanged), whether the request passes, what
# remains, and the microseconds until the whole quota and until the next unit is available.

_COUNTED = """
-- a count that holds from one moment to another: of a window of the caller's, or of the calendar
local function counted(letter, state, same, start, ends, moment, count, cost, limit)
  local allowed = count + cost <= limit
  if allowed and cost > 0 then
    count, same = count + cost, false
  end
  if not same then
    state = count > 0 and struct.pack('>c1i8I8', letter, start, count)
  end
  local reset = count > 0 and ends - moment or 0
  local retry = (not allowed or count == limit) and reset or 0
  return state, allowed, limit - count, reset, retry
end
"""

_BUCKET = """
algorithms['token-bucket'] = function(old, moment, cost, limit, token, tick)
  local time, bucket = floor(moment / tick), limit * token
  local lacks, state, same = 0, old, true
  if old and #old == 17 then
    local tag, since, lacked = struct.unpack('>c1i8I8', old)
    if tag == 'b' and lacked <= bucket then
      if since > time then  -- the clock was set back
        lacks, same = lacked, false
      else
        lacks = math.max(0, lacked - (time - since) * limit)
      end
    end
  end
  local asked = cost * token
  local room = bucket - lacks
  local allowed = room >= asked
  if allowed and cost > 0 then
    lacks, room, same = lacks + asked, room - asked, false
  end
  if not same then
    state = lacks > 0 and struct.pack('>c1i8I8', 'b', time, lacks)
  end
  local missing = (allowed and token or asked) - room
  local early = moment - time * tick
  local reset = lacks > 0 and ceil(lacks / limit) * tick - early or 0
  local retry = missing > 0 and ceil(missing / limit) * tick - early or 0
  return state, allowed, floor(room / token), reset, retry
end
"""

_FIXED = """
algorithms['fixed-window'] = function(old, moment, cost, limit, period)
  local start, count, same = moment, 0, true
  if old and #old == 17 then
    local tag, began, seen = struct.unpack('>c1i8I8', old)
    if tag == 'f' and seen <= limit and began + period > moment then
      count = seen
      if began > moment then  -- the clock was set back
        same = false
      else
        start = began
      end
    end
  end
  return counted('f', old, same, start, start + period, moment, count, cost, limit)
end
"""

_SLIDING = """
algorithms['sliding-window'] = function(old, moment, cost, limit, slot, last)
  local form = '>c1i8' .. string.rep(limit <= 65535 and 'I2' or 'I4', last + 1)
  local present = floor(moment / slot)
  local counts, total, state, same = {}, 0, old, true
  for place = 0, last do counts[place] = 0 end
  if old and #old == struct.size(form) then
    local read = {struct.unpack(form, old)}
    local passed, sum = present - read[2], 0
    for place = 0, last do sum = sum + read[place + 3] end
    if read[1] == 's' and passed <= last and sum <= limit then
      same = passed >= 0  -- else the clock was set back
      for place = 0, last do
        local where = math.min(place - passed, last)
        if where >= 0 then counts[where] = counts[where] + read[place + 3] end
      end
      total = sum
      if passed > 0 then
        total = 0
        for place = 0, last do total = total + counts[place] end
      end
    end
  end
  local allowed = total + cost <= limit
  if allowed and cost > 0 then
    counts[last], total, same = counts[last] + cost, total + cost, false
  end
  local reset, retry = 0, 0
  if total > 0 then
    if not same then
      state = struct.pack(form, 's', present, unpack(counts, 0, last))
    end
    local newest = last
    while counts[newest] == 0 do newest = newest - 1 end
    reset = (present + newest + 1) * slot - moment
    local missing, oldest = total + (allowed and 1 or cost) - limit, -1
    while missing > 0 do
      oldest = oldest + 1
      missing = missing - counts[oldest]
    end
    if oldest >= 0 then retry = (present + oldest + 1) * slot - moment end
  end
  return state, allowed, limit - total, reset, retry
end
"""

_CALENDAR = """
local function days_until(year, month)
  if month <= 2 then year = year - 1 end
  local era = floor(year / 400)
  year = year - era * 400
  local day = floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5)
  return era * 146097 + year * 365 + floor(year / 4) - floor(year / 100) + day - 719468
end

local function year_and_month(days)
  days = days + 719468
  local era = floor(days / 146097)
  local day = days - era * 146097
  local year = floor((day - floor(day / 1460) + floor(day / 36524) - floor(day / 146096)) / 365)
  day = day - (365 * year + floor(year / 4) - floor(year / 100))
  local month = floor((5 * day + 2) / 153)
  year = year + era * 400
  if month >= 10 then return year + 1, month - 9 end
  return year, month + 3
end

local spans = {hour = 3600, day = 86400, week = 604800}

local function span(calendar, second)
  local whole = spans[calendar]
  if whole then
    local start = second - (second + (calendar == 'week' and 259200 or 0)) % whole
    return start, start + whole
  end
  local year, month = year_and_month(floor(second / 86400))
  if calendar == 'year' then
    return days_until(year, 1) * 86400, days_until(year + 1, 1) * 86400
  end
  local start = days_until(year, month) * 86400
  if month == 12 then year, month = year + 1, 0 end
  return start, days_until(year, month + 1) * 86400
end

algorithms['calendar'] = function(old, moment, cost, limit, _, _, calendar)
  local start, ends = span(calendar, floor(moment / 1000000))
  local count, same = 0, true
  if old and #old == 17 then
    local tag, began, seen = struct.unpack('>c1i8I8', old)
    if tag == 'c' and began >= start and seen <= limit then
      count, same = seen, began <= start  -- else the clock was set back
    end
  end
  return counted('c', old, same, start, ends * 1000000, moment, count, cost, limit)
end
"""

LUA: dict[str, tuple[str, ...]] = {
    "token-bucket": (_BUCKET,),
    "fixed-window": (_COUNTED, _FIXED),
    "sliding-window": (_SLIDING,),
    "calendar": (_COUNTED, _CALENDAR),
}
"""The parts of each algorithm by name: a script contains only those it needs."""


class LuaScript:
    """A script, and the commands that run it."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def known(self, key: bytes, *arguments: bytes) -> bytes:
        """Return the command that runs it by its digest; the answer may be ``NOSCRIPT``."""
        return command(b"EVALSHA", self.digest, b"1", key, *arguments)

    def whole(self, key: bytes, *arguments: bytes) -> bytes:
        """Return the command that runs it by its text, and loads it."""
        return command(b"EVAL", self.text, b"1", key, *arguments)


GET = LuaScript("return {redis.call('GET', KEYS[1]), redis.call('TIME')}")

SWAP = LuaScript(
    """
-- ARGV: the old value and the new one, each '+' and the bytes, or '-' for none; milliseconds
local live = redis.call('GET', KEYS[1])
local old, new = ARGV[1], ARGV[2]
if old == '-' then
  if live then return 0 end
elseif live ~= old:sub(2) then
  return 0
end
if new ~= '-' then
  redis.call('SET', KEYS[1], new:sub(2), 'PX', ARGV[3])
elseif live then
  redis.call('DEL', KEYS[1])
end
return 1
"""
)

_BEGIN = """
local floor, ceil = math.floor, math.ceil
local algorithms = {}
"""

_TIME = """
-- ARGV: the microsecond ('' but in tests), the cost, and for each quota its algorithm, its tag, its
-- limit, two numbers and its calendar
local moment, cost = tonumber(ARGV[1]), tonumber(ARGV[2])
if not moment then
  local time = redis.call('TIME')
  moment = time[1] * 1000000 + time[2]
end
local live = redis.call('GET', KEYS[1])

local function keep(state, reset)
  if state then
    redis.call('SET', KEYS[1], state, 'PX', ceil(reset / 1000) + 1)
  else
    redis.call('DEL', KEYS[1])
  end
end

local function take(state, first, price)
  return algorithms[ARGV[first]](state, moment, price, tonumber(ARGV[first + 2]),
    tonumber(ARGV[first + 3]), tonumber(ARGV[first + 4]), ARGV[first + 5])
end
"""

_ONE = """
local state, allowed, remaining, reset, retry = take(live, 3, cost)
if state ~= live then keep(state, reset) end
return {moment, allowed and 1 or 0, remaining, reset, retry}
"""

_SEVERAL = """
local quotas, places, states = (#ARGV - 2) / 6, {}, {}
for each = 1, quotas do
  places[ARGV[each * 6 - 2]], states[each] = each, false
end
if live and live:sub(1, 1) == 't' then
  local place, size = 1, #live
  while place + 6 <= size do
    local tag, length = live:sub(place + 1, place + 4), struct.unpack('>I2', live, place + 5)
    local ends = place + 6 + length
    if ends > size then break end
    if places[tag] then states[places[tag]] = live:sub(place + 7, ends) end
    place = ends
  end
end

local results, passes = {}, true
for each = 1, quotas do
  results[each] = {take(states[each], each * 6 - 3, cost)}
  passes = passes and results[each][2]
end
if not passes and cost > 0 then
  for each = 1, quotas do
    if results[each][2] then results[each] = {take(states[each], each * 6 - 3, 0)} end
  end
end

local answer, changed, longest, parts = {moment}, false, 0, {'t'}
for each = 1, quotas do
  local state, allowed, remaining, reset, retry = unpack(results[each])
  changed = changed or state ~= states[each]
  longest = math.max(longest, reset)
  if state then
    parts[#parts + 1] = ARGV[each * 6 - 2] .. struct.pack('>I2', #state) .. state
  end
  local last = #answer
  answer[last + 1], answer[last + 2] = allowed and 1 or 0, remaining
  answer[last + 3], answer[last + 4] = reset, retry
end
if changed then keep(table.concat(parts), longest) end
return answer
"""


@lru_cache(maxsize=64)
def take_script(names: frozenset[str], several: bool) -> LuaScript:
    """Return the script that decides by the algorithms of these *names* only.

    :param several: Whether the key holds the states of several quotas.
    """
    parts = dict.fromkeys(part for name in sorted(names) for part in LUA[name])
    return LuaScript("".join([_BEGIN, *parts, _TIME, _SEVERAL if several else _ONE]))


# Quotas as arguments of the script, and its answer as verdicts.


class Prepared(NamedTuple):
    """Algorithms as arguments of the script, and the constant parts of its command."""

    script: LuaScript
    arguments: tuple[bytes, ...]
    limits: tuple[int, ...]
    quotas: tuple[Quota, ...]
    begins: bytes
    """The command by digest, up to the length of the key."""
    ends: bytes
    """The part after the cost."""
    one: bytes
    """The part after the key for a cost of 1 at the server's time."""
    fits: Callable[[Any], bool]
    """Returns whether an answer has the expected shape."""

    def known(self, key: bytes, cost: int, moment: bytes) -> bytes:
        """Return the command by digest.

        :param moment: Time in microseconds; empty: the server's time.
        """
        if cost == 1 and not moment:
            return b"%b%d\r\n%b\r\n%b" % (self.begins, len(key), key, self.one)
        differs = packed(key, moment, b"%d" % cost)
        return b"%b%b%b" % (self.begins, differs[1:], self.ends)


@lru_cache(maxsize=1024)
def prepared(algorithms: tuple[Algorithm, ...]) -> Prepared | None:
    """Return the script and arguments for *algorithms*; ``None`` if one has no script.

    :raises ValueError: *algorithms* is empty, or two are the same.
    """
    if not algorithms:
        raise ValueError("there has to be at least one quota")
    arguments: list[bytes] = []
    tags = set()
    for one in algorithms:
        if ALGORITHMS.get(one.name) is not type(one):
            return None  # a custom one, even if it has the name of a built-in one
        numbers, quota = _numbers(one), one.quota
        tag = tag_of(one)  # rules and script can read each other's states
        tags.add(tag)
        arguments += (
            one.name.encode(),
            tag,
            b"%d" % quota.limit,
            b"%d" % numbers[0],
            b"%d" % numbers[1],
            (quota.calendar or "").encode(),
        )
    if len(tags) < len(algorithms):
        raise ValueError("two of the quotas are the same")
    quotas = tuple(one.quota for one in algorithms)
    script = take_script(frozenset(one.name for one in algorithms), len(algorithms) > 1)
    begins, ends = script.known(b"", b"", b"", *arguments).split(packed(b"", b"", b""))
    limits = tuple(quota.limit for quota in quotas)
    return Prepared(
        script,
        tuple(arguments),
        limits,
        quotas,
        begins + b"$",
        ends,
        packed(b"", b"1") + ends,
        _verdicts_fit(limits),
    )


def verdicts_of(limits: Sequence[int], answer: list[int]) -> tuple[tuple[Verdict, ...], float]:
    """Return each quota's verdict and the store's time from the script's *answer*."""
    if len(limits) == 1:
        moment, allowed, remaining, reset, retry = answer
        one = Verdict(allowed == 1, limits[0], remaining, reset / 1_000_000, retry / 1_000_000)
        return (one,), moment / 1_000_000
    verdicts = []
    for place, limit in enumerate(limits):
        allowed, remaining, reset, retry = answer[4 * place + 1 : 4 * place + 5]
        verdicts.append(
            Verdict(allowed == 1, limit, remaining, reset / 1_000_000, retry / 1_000_000)
        )
    return tuple(verdicts), answer[0] / 1_000_000


def _numbers(algorithm: Algorithm) -> tuple[int, int]:
    micros = algorithm.quota.micros
    if isinstance(algorithm, TokenBucket):
        return -(-micros // algorithm.tick), algorithm.tick
    if isinstance(algorithm, SlidingWindow):
        return algorithm.slot, algorithm.SLOTS
    return micros, 0


# The shapes of the answers: one that does not match is a failure of the store.

_INTEGERS = {int}

_LATEST = 2**53  # what a Lua number holds exactly, in microseconds: in the year 2255


def is_value(answer: Any) -> bool:
    """Return whether *answer* is one to ``GET``."""
    return answer is None or (answer.__class__ is bytes and len(answer) <= VALUE_BYTES)


def is_value_and_time(answer: Any) -> bool:
    """Return whether *answer* is one to the script that reads: a value and ``TIME``."""
    if answer.__class__ is not list or len(answer) != 2:
        return False
    value, time = answer
    return (
        is_value(value)
        and time.__class__ is list
        and len(time) == 2
        and all(map(is_number, time))
        and int(time[0]) < _LATEST // 1_000_000
        and int(time[1]) < 1_000_000
    )


def is_flag(answer: Any) -> bool:
    """Return whether *answer* is one to the script that swaps."""
    return answer.__class__ is int and answer in (0, 1)


def _verdicts_fit(limits: tuple[int, ...]) -> Callable[[Any], bool]:
    """Return the predicate for answers of the script that decides about *limits*.

    An answer is a time and, for each limit, whether it allows the request, what remains, and two
    durations, in microseconds.
    """
    if len(limits) == 1:
        (limit,) = limits

        def is_verdict(answer: Any) -> bool:  # nearly every limited request needs this one
            # a wrong length fails the unpacking
            try:
                moment, allowed, remaining, reset, retry = answer
                good: bool = (
                    answer.__class__ is list
                    and set(map(type, answer)) == _INTEGERS
                    and 0 <= allowed <= 1
                    and 0 <= remaining <= limit
                    and 0 <= moment < _LATEST
                    and 0 <= reset < _LATEST
                    and 0 <= retry < _LATEST
                )
            except (TypeError, ValueError):
                return False
            return good

        return is_verdict

    count = 4 * len(limits) + 1

    def are_verdicts(answer: Any) -> bool:
        if answer.__class__ is not list or len(answer) != count:
            return False
        for number in answer:
            if number.__class__ is not int or not 0 <= number < _LATEST:
                return False
        for place, limit in enumerate(limits):
            if answer[4 * place + 1] > 1 or answer[4 * place + 2] > limit:
                return False
        return True

    return are_verdicts
