# shellcheck shell=sh
# `xid ...`: what the driver told the kernel of broken GPUs; `uptime SECONDS`.
dmesg 2>/dev/null | grep 'NVRM: Xid' | tail -n 200 | sed 's/^/xid /'
read -r up rest </proc/uptime
echo "uptime $up"
: "$rest"
