"""What a Redis is asked to do in one step, in Lua; each script is one round trip.

Every script names the one key it touches, so a cluster knows who has it. ``TIME`` before a write
needs the effects of a script to be replicated, not its text: that is so from Redis 5 on.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1

from wsgigate.store.redis_algorithms import LUA
from wsgigate.store.redis_wire import command

__all__ = ["GET", "SWAP", "Script", "take_script"]


class Script:
    """A script, and the commands that run it."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.digest = sha1(self.text, usedforsecurity=False).hexdigest().encode()

    def known(self, key: bytes, *arguments: bytes) -> bytes:
        """Return the command that runs it where it is known; ``NOSCRIPT`` where it is not."""
        return command(b"EVALSHA", self.digest, b"1", key, *arguments)

    def whole(self, key: bytes, *arguments: bytes) -> bytes:
        """Return the command that runs it anywhere, and makes it known."""
        return command(b"EVAL", self.text, b"1", key, *arguments)


GET = Script("return {redis.call('GET', KEYS[1]), redis.call('TIME')}")

SWAP = Script(
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
def take_script(names: frozenset[str], several: bool) -> Script:
    """Return the script that decides by the algorithms of these *names*, and knows no others.

    :param several: Whether the states of several quotas are under the one key.
    """
    parts = dict.fromkeys(part for name in sorted(names) for part in LUA[name])
    return Script("".join([_BEGIN, *parts, _TIME, _SEVERAL if several else _ONE]))
