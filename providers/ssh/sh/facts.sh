# shellcheck shell=sh
# Out: `cores N`, `memory KB`, `disk KB`, `arch WORD`.
# shellcheck disable=SC2154
echo "cores $(nproc 2>/dev/null || grep -c '^processor' /proc/cpuinfo)"
sed -n 's/^MemTotal: *\([0-9]*\) kB/memory \1/p' /proc/meminfo
df -Pk "$root" 2>/dev/null | awk 'NR == 2 { print "disk", $4 }'
echo "arch $(uname -m)"
