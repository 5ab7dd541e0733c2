"""What the server runs for a bus: one Lua script per call, each of them one atomic step.

A message leaves its topic only when its room is needed and every group is done with it: delivered, and acknowledged.
"""

from __future__ import annotations

from typing import Final

from execsafe._redis.script import Script

_PRELUDE: Final = r"""
local topic = KEYS[1]

local function by_name(pairs_)
  local found = {}
  for i = 1, #pairs_, 2 do found[pairs_[i]] = pairs_[i + 1] end
  return found
end

local function groups_of(stream)
  local found = {}
  if redis.call('EXISTS', stream) == 1 then
    for i, each in ipairs(redis.call('XINFO', 'GROUPS', stream)) do found[i] = by_name(each) end
  end
  return found
end

-- Numbers without leading zeros, too large for Lua's doubles.
local function is_less(one, other)
  if #one ~= #other then return #one < #other end
  return one < other
end

local function is_before(one, other)
  local ms, seq = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  if ms ~= other_ms then return is_less(ms, other_ms) end
  return is_less(seq, other_seq)
end

-- Forgets what every group is done with, until there is room for one more message; at most so many pages of 500 a call.
local function make_room(stream, most, pages)
  local length = redis.call('XLEN', stream)
  if length < most then return true end
  local groups = groups_of(stream)
  if #groups == 0 then
    redis.call('XTRIM', stream, 'MAXLEN', most - 1)
    return true
  end
  local needed, last = {}, nil
  for _, group in ipairs(groups) do
    local delivered = group['last-delivered-id']
    if not last or is_before(delivered, last) then last = delivered end
    if group['pending'] > 0 then
      for _, entry in ipairs(redis.call('XPENDING', stream, group['name'], '-', '+', group['pending'])) do
        needed[entry[1]] = true
      end
    end
  end
  local start = '-'
  repeat
    local page = redis.pcall('XRANGE', stream, start, last, 'COUNT', 500)
    if page.err then break end  -- behind the last number that there is
    for _, entry in ipairs(page) do
      start = '(' .. entry[1]
      if not needed[entry[1]] then length = length - redis.call('XDEL', stream, entry[1]) end
    end
    pages = pages - 1
  until length < most or #page < 500 or pages == 0
  return length < most
end

-- Appends what stands in ARGV from there on, if there is room.
local function append(stream, most, from)
  if not make_room(stream, most, 20) then return nil end
  return redis.call('XADD', stream, '*', unpack(ARGV, from))
end
"""


def _script(body: str) -> Script:
    return Script.of(f"{_PRELUDE}\n{body}")


PUBLISH: Final = _script(
    r"""
local most = tonumber(ARGV[1])
local id = append(topic, most, 2)
if not id then return {'full'} end
return {'ok', id}
"""
)

# The group's place in the topic; messages that were removed before the group had done with them; and those to deliver.
READ: Final = _script(
    r"""
local group, consumer, limit, idle_ms, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local due = redis.pcall('XPENDING', topic, group, 'IDLE', idle_ms, '-', '+', limit)
if due.err then
  if not string.find(due.err, 'NOGROUP', 1, true) then return due end
  redis.call('XGROUP', 'CREATE', topic, group, '0', 'MKSTREAM')
  due = {}
end
local lost, messages = {}, {}
for _, entry in ipairs(due) do
  local id = entry[1]
  local claimed = redis.call('XCLAIM', topic, group, consumer, idle_ms, id)[1]
  if claimed then
    messages[#messages + 1] = {id, entry[4] + 1, claimed[2]}
  else
    redis.call('XACK', topic, group, id)
    lost[#lost + 1] = id
  end
end
if #messages < limit then
  local new = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', limit - #messages, 'STREAMS', topic, '>')
  for _, entry in ipairs(new and new[1][2] or {}) do messages[#messages + 1] = {entry[1], 1, entry[2]} end
end
-- Other programs append without looking at the bound.
if redis.call('XLEN', topic) > most then make_room(topic, most + 1, 2) end
local place = '0-0'
for _, each in ipairs(groups_of(topic)) do
  if each['name'] == group then place = each['last-delivered-id'] end
end
return {'ok', place, lost, messages}
"""
)

JOIN: Final = _script(
    r"""
local made = redis.pcall('XGROUP', 'CREATE', topic, ARGV[1], '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
return {'ok'}
"""
)

# A message that is no longer pending was acknowledged, or moved by an earlier call whose answer was lost.
DEAD_LETTER: Final = _script(
    r"""
local letters, group, id, most = KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local pending = redis.pcall('XPENDING', topic, group, id, id, 1)
if pending.err and not string.find(pending.err, 'NOGROUP', 1, true) then return pending end
if pending.err or #pending == 0 then return {'ok'} end
if not append(letters, most, 4) then return {'full'} end
redis.call('XACK', topic, group, id)
return {'ok'}
"""
)

DEPTH: Final = _script(
    r"""
local kept = redis.call('XLEN', topic)
local waiting, pending, last = nil, 0, '-'
for _, group in ipairs(groups_of(topic)) do
  if group['name'] == ARGV[1] then
    waiting, pending, last = group['lag'] or nil, group['pending'], '(' .. group['last-delivered-id']
  end
end
if last == '-' then waiting = kept end
if not waiting then  -- older servers do not say, nor does any where messages were removed from the middle
  waiting = 0
  repeat
    local page = redis.pcall('XRANGE', topic, last, '+', 'COUNT', 500)
    if page.err then break end  -- behind the last number that there is
    waiting = waiting + #page
    if #page > 0 then last = '(' .. page[#page][1] end
  until #page < 500
end
return {'ok', waiting, pending, kept}
"""
)
