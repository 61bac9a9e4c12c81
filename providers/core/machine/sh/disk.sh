# shellcheck shell=sh
# `disk SIZE FREE` in KB, where jobs run.
df -Pk "${HOME:-/}" 2>/dev/null | awk 'NR == 2 { print "disk", $2, $4 }'
