"""The algorithms of :mod:`wsgigate.rules.algorithms` in Lua, number by number and byte by byte.

All numbers are whole and below 2**53, so a double, which is what Lua counts in, holds each of them.
Each algorithm gets a state (false for none), the microsecond, the cost and its own numbers; it
returns the state (the very same if it stays), whether the request passes, what remains, and the
microseconds until all of the quota and until the next request of it is there.
"""

from __future__ import annotations

__all__ = ["LUA"]

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
"""What each algorithm consists of, by its name: a script has only what it needs."""
