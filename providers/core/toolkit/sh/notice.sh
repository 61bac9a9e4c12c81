#!/bin/sh
# A provider that takes a machine back says so at an address that only the machine can ask; see notice.py for the variables.
# shellcheck disable=SC2154
mkdir -p "$(dirname "$file")"
while :; do
  set --
  [ -z "$header" ] || set -- "$@" -H "$header"
  if [ -z "$grant_url" ] || grant=$(curl -sf -m 2 -X PUT -H "$grant_ask" "$grant_url"); then
    [ -z "$grant_url" ] || set -- "$@" -H "$grant_header: $grant"
    curl -sf -m 2 --max-filesize 65536 "$@" -o "$file.new" "$url" && grep -q -e "$says" "$file.new" && mv "$file.new" "$file"
  fi
  sleep "$every"
done
