"""What the server runs: one Lua script per call, each of them one atomic step.

Every script gets the same keys, and starts by checking that this is the store that the caller knows, whole, no older
than the caller has seen it, and with the caller's own last write in it (a replica that took over without that write may
have more revisions by now). All that can be refused is refused before the first write: a script that has written is
carried out to its end, as the server checks memory, disk and role only before a script's first write. What frees
memory begins with a deletion, which a full server allows.

Lua counts in doubles. Times and sequence numbers are therefore compared as text of 19 digits; only what grows by one
at a time (revision, fence, sequence) is counted here, and stays far below 2**53.
"""

from __future__ import annotations

from typing import Final

from execsafe._redis.script import Script

SCHEMA_VERSION: Final = 1
# A caller's last write is remembered for as many writes of others, then until the next purge.
WITNESSED: Final = 10_000
KEY_NAMES: Final = (
    "meta",  # hash: schema, id, revision, fence, seq, sizes, forgotten
    "records",  # hash: "collection\0key" -> row (see _redis_rows)
    "aliases",  # hash: "collection\0alias" -> key
    "open",  # sorted set, all scores 0, so in the order of its members: "collection\0key"
    "ended",  # the same: "<end> collection\0key"
    "leases",  # hash: name -> "<token> <end> <holder>"
    "expiring",  # as open: "<end> name" of each lease
    "events",  # stream: "<seq>-0" -> at, sum, body
    "cursors",  # hash: name -> seq
    "witnesses",  # hash: caller -> revision of its last write; those before meta's "forgotten" are not all there
)

_PRELUDE: Final = r"""
local meta, records, aliases, opened, ended, leases, expiring, events, cursors, witnesses = unpack(KEYS)
local head, revision, fence, seq, own
local last = 5  -- before: schema, id and revision that the caller knows, its name, the revision of its own last write

local function take()
  last = last + 1
  return ARGV[last]
end

local function refuse(...)
  error({refusal = {...}}, 0)
end

local function digits(number)
  return string.format('%019.0f', number)
end

-- Whatever is removed or added past these scripts changes one of the sizes.
local function sizes()
  return table.concat({
    redis.call('HLEN', records), redis.call('HLEN', aliases), redis.call('ZCARD', opened), redis.call('ZCARD', ended),
    redis.call('HLEN', leases), redis.call('ZCARD', expiring), redis.call('XLEN', events), redis.call('HLEN', cursors),
    redis.call('HLEN', witnesses),
  }, ' ')
end

local function check()
  head = redis.call('HMGET', meta, 'schema', 'id', 'revision', 'fence', 'seq', 'forgotten', 'sizes')
  if not head[1] and redis.call('EXISTS', meta) == 0 then refuse('absent') end
  if not (head[1] and string.match(head[1], '^%d+$')) then refuse('damaged', 'its schema is not a number') end
  if tonumber(head[1]) > tonumber(ARGV[1]) then refuse('newer', head[1]) end
  if head[1] ~= ARGV[1] then refuse('damaged', 'its schema never existed') end
  for i = 3, 6 do
    if not (head[i] and #head[i] == 19 and string.match(head[i], '^%d+$')) then
      refuse('damaged', 'a counter is not a number')
    end
  end
  if not head[2] or (ARGV[2] ~= '' and head[2] ~= ARGV[2]) then refuse('other') end
  if head[3] < ARGV[3] then refuse('behind', head[3], ARGV[3]) end
  if head[7] ~= sizes() then refuse('damaged', 'something was removed from it or added to it by hand') end
  own = redis.call('HGET', witnesses, ARGV[4]) or digits(0)
  local was_forgotten = own == digits(0) and ARGV[5] < head[6]
  if own < ARGV[5] and not was_forgotten then refuse('behind', own, ARGV[5]) end
  revision, fence, seq = tonumber(head[3]), tonumber(head[4]), tonumber(head[5])
end

-- Ends every script that has written something.
local function finish()
  revision = revision + 1
  own = digits(revision)
  redis.call('HSET', witnesses, ARGV[4], own)
  redis.call('HSET', meta, 'revision', own, 'fence', digits(fence), 'seq', digits(seq), 'sizes', sizes())
end

local function answer(...)
  return {'ok', digits(revision), own, ...}
end

-- Version, whether it is open, end, aliases (each with a NUL behind it) and the rest of a row.
local function read(row)
  local version, is_open, ended_at, length, start = string.match(row, '^(%d+) ([01]) (%d*) (%d+) %x+\n()')
  if not version or start - 1 + tonumber(length) > #row then refuse('damaged', 'a record has no head') end
  return version, is_open, ended_at, string.sub(row, start, start - 1 + tonumber(length))
end

local function lease_of(name)
  local row = redis.call('HGET', leases, name)
  if not row then return nil end
  local token, ends_at, holder = string.match(row, '^(%d+) (%d+) (.+)$')
  if not token or tonumber(token) > fence then refuse('damaged', 'a lease has a token that was never given') end
  return {token = token, ends_at = ends_at, holder = holder}
end
"""

_TAIL: Final = r"""
local is_done, reply = pcall(body)
if is_done then return reply end
if type(reply) == 'table' then return reply.refusal or reply end  -- a command's error is an answer as it is
error(reply, 0)
"""


def _script(body: str, *, opening: bool = False) -> Script:
    check = "" if opening else "check()\n"
    return Script.of(f"{_PRELUDE}\nlocal function body()\n{check}{body}\nend\n{_TAIL}")


OPEN: Final = _script(
    r"""
  local new_id, is_probe = take(), take() == '1'
  if ARGV[2] == '' and redis.call('EXISTS', meta) == 0 then
    if new_id == '' then refuse('missing') end
    for i = 2, #KEYS do
      if redis.call('EXISTS', KEYS[i]) == 1 then refuse('damaged', 'its head is missing') end
    end
    local zero = digits(0)
    redis.call('HSET', meta, 'schema', ARGV[1], 'id', new_id, 'revision', digits(1), 'fence', zero, 'seq', zero,
      'forgotten', zero, 'sizes', sizes())
  end
  check()
  if is_probe then finish() end
  return answer(head[2])
""",
    opening=True,
)

COMMIT: Final = _script(
    r"""
  local now = take()
  local fenced, fence_name, fence_token = take() == '1', take(), take()
  local wanted, lease_name, holder, ends_at = take() == '1', take(), take(), take()
  local released, release_name, release_token = take() == '1', take(), take()

  if fenced then
    local current = lease_of(fence_name)
    if not current or current.token ~= fence_token then return {'stale', current and current.token or ''} end
  end
  local held = wanted and lease_of(lease_name)
  if held and held.holder ~= holder and held.ends_at > now then return {'held', held.ends_at, held.holder} end
  if released then lease_of(release_name) end

  local puts = {}
  for i = 1, tonumber(take()) do
    local put = {
      collection = take(), key = take(), before = take(), version = take(), is_open = take(), ended_at = take(),
      sum = take(), body = take(), aliases = '', claims = {},
    }
    put.field = put.collection .. '\0' .. put.key
    put.row = redis.call('HGET', records, put.field)
    local version = '0'
    if put.row then version, put.was_open, put.had_ended_at, put.aliases = read(put.row) end
    if version ~= put.before then return {'version', tostring(i), version} end
    for _ = 1, tonumber(take()) do
      local alias = take()
      local owner = redis.call('HGET', aliases, put.collection .. '\0' .. alias)
      if owner and owner ~= put.key then return {'alias', tostring(i), alias, owner} end
      if not owner then put.claims[#put.claims + 1] = alias end
    end
    puts[i] = put
  end

  -- First, as it is the one write that could be refused: a number that was given out before.
  for _ = 1, tonumber(take()) do
    seq = seq + 1
    local added = redis.pcall('XADD', events, string.format('%.0f-0', seq), 'at', take(), 'sum', take(), 'body', take())
    if type(added) == 'table' and added.err then
      if not string.find(added.err, 'XADD', 1, true) then error(added, 0) end
      refuse('damaged', 'its count of events went back')
    end
  end

  for _, put in ipairs(puts) do
    for _, alias in ipairs(put.claims) do
      if redis.call('HSETNX', aliases, put.collection .. '\0' .. alias, put.key) == 1 then
        put.aliases = put.aliases .. alias .. '\0'
      end
    end
    local row_head = table.concat({put.version, put.is_open, put.ended_at, #put.aliases, put.sum}, ' ')
    redis.call('HSET', records, put.field, row_head .. '\n' .. put.aliases .. put.body)
    if put.was_open == '0' and put.had_ended_at ~= '' then
      redis.call('ZREM', ended, put.had_ended_at .. ' ' .. put.field)
    end
    if put.is_open == '1' then
      redis.call('ZADD', opened, 0, put.field)
    else
      redis.call('ZREM', opened, put.field)
      if put.ended_at ~= '' then redis.call('ZADD', ended, 0, put.ended_at .. ' ' .. put.field) end
    end
  end

  local token = ''
  if wanted then
    if held then redis.call('ZREM', expiring, held.ends_at .. ' ' .. lease_name) end
    if held and held.holder == holder then
      token = held.token
    else
      fence = fence + 1
      token = string.format('%.0f', fence)
    end
    redis.call('HSET', leases, lease_name, token .. ' ' .. ends_at .. ' ' .. holder)
    redis.call('ZADD', expiring, 0, ends_at .. ' ' .. lease_name)
  end
  if released then
    local current = lease_of(release_name)
    if current and current.token == release_token then
      redis.call('HDEL', leases, release_name)
      redis.call('ZREM', expiring, current.ends_at .. ' ' .. release_name)
    end
  end
  finish()
  return answer(token)
"""
)

FIND: Final = _script(
    r"""
  local collection, key = take(), take()
  local row = redis.call('HGET', records, collection .. '\0' .. key)
  if row then return answer(key, row) end
  local owner = redis.call('HGET', aliases, collection .. '\0' .. key)
  if not owner then return answer() end
  row = redis.call('HGET', records, collection .. '\0' .. owner)
  if not row then refuse('damaged', 'an alias does not lead to a record') end
  return answer(owner, row)
"""
)

# All in one step: with pages, a batch that ends one record and opens another could hide both.
SCAN_OPEN: Final = _script(
    r"""
  local collection = take()
  local reply = answer()
  for _, field in ipairs(redis.call('ZRANGEBYLEX', opened, '[' .. collection .. '\0', '(' .. collection .. '\1')) do
    local row = redis.call('HGET', records, field)
    if not row then refuse('damaged', 'an open record is missing') end
    reply[#reply + 1] = string.sub(field, #collection + 2)
    reply[#reply + 1] = row
  end
  return reply
"""
)

READ_EVENTS: Final = _script("return answer(redis.call('XRANGE', events, take(), '+', 'COUNT', take()))")

GET_CURSOR: Final = _script("return answer(redis.call('HGET', cursors, take()) or '0')")

SET_CURSOR: Final = _script(
    r"""
  local name, to = take(), take()
  local current = redis.call('HGET', cursors, name)
  if not current or current < to then
    redis.call('HSET', cursors, name, to)
    finish()
  end
  return answer()
"""
)

DELETE_CURSOR: Final = _script(
    r"""
  if redis.call('HDEL', cursors, take()) == 1 then finish() end
  return answer()
"""
)

PURGE_RECORDS: Final = _script(
    r"""
  local before, limit = take(), take()
  local gone = {}
  for i, member in ipairs(redis.call('ZRANGEBYLEX', ended, '-', '(' .. before, 'LIMIT', 0, limit)) do
    local field = string.sub(member, 21)
    local collection = string.match(field, '^([^%z]*)%z')
    local row = redis.call('HGET', records, field)
    if not (collection and row) then refuse('damaged', 'an ended record is missing') end
    local _, is_open, ended_at, names = read(row)
    if is_open ~= '0' or ended_at ~= string.sub(member, 1, 19) then refuse('damaged', 'a record has another end') end
    gone[i] = {member = member, field = field, collection = collection, names = names}
  end
  for _, each in ipairs(gone) do
    for alias in string.gmatch(each.names, '([^%z]+)%z') do
      redis.call('HDEL', aliases, each.collection .. '\0' .. alias)
    end
    redis.call('HDEL', records, each.field)
    redis.call('ZREM', ended, each.member)
  end
  if #gone > 0 then finish() end
  return answer(#gone)
"""
)

PURGE_LEASES: Final = _script(
    r"""
  local before, limit = take(), take()
  local found = redis.call('ZRANGEBYLEX', expiring, '-', '(' .. before, 'LIMIT', 0, limit)
  for _, member in ipairs(found) do
    local lease = lease_of(string.sub(member, 21))
    if not lease or lease.ends_at ~= string.sub(member, 1, 19) then refuse('damaged', 'a lease has another end') end
  end
  for _, member in ipairs(found) do
    redis.call('HDEL', leases, string.sub(member, 21))
    redis.call('ZREM', expiring, member)
  end
  if #found > 0 then finish() end
  return answer(#found)
"""
)

# What has no write among the last ones is hardly alive. One that is nevertheless is told apart by "forgotten".
PURGE_WITNESSES: Final = _script(
    r"""
  local cut = digits(math.max(revision - tonumber(take()), 0))
  local found = redis.call('HGETALL', witnesses)
  local count = 0
  for i = 1, #found, 2 do
    if found[i + 1] < cut then
      redis.call('HDEL', witnesses, found[i])
      count = count + 1
    end
  end
  if count > 0 then
    redis.call('HSET', meta, 'forgotten', cut)
    finish()
  end
  return answer(count)
"""
)

# Answers how many were looked at, and the number of the last one.
PURGE_EVENTS: Final = _script(
    r"""
  local start, before, limit = take(), take(), take()
  local passed = string.rep('9', 19)
  for _, at in ipairs(redis.call('HVALS', cursors)) do
    if at < passed then passed = at end
  end
  local found = redis.call('XRANGE', events, start, '+', 'COUNT', limit)
  local count, last_seq = 0, ''
  for _, entry in ipairs(found) do
    local number = string.match(entry[1], '^%d+')
    number = string.rep('0', 19 - #number) .. number
    if number > passed then break end
    last_seq = number
    if entry[2][2] < before then
      redis.call('XDEL', events, entry[1])
      count = count + 1
    end
  end
  if count > 0 then finish() end
  return answer(#found, last_seq)
"""
)
