# shellcheck shell=sh
# Ends the job and all it started, $grace s after TERM at the latest; one that never started will not start any more. Reports its
# end to stderr. A supervisor takes as long as its sweep by itself: 8 s more.
# shellcheck disable=SC2034,SC2154 # read by the functions; $dir, $grace and $clean are set in front of this
mkdir -p "$dir" && (set -C; : >"$dir/claim") 2>/dev/null && { : >>"$dir/log"; echo '- cancelled 0 -' >"$dir/exit"; }
token="PREFECT_GPU_JOB=$id:" timer=- parent=-
tries=0
until [ -e "$dir/state" ] || [ -e "$dir/exit" ] || [ $tries -ge 50 ]; do
    sleep 0.02 || sleep 1
    tries=$((tries + 1))
done
uptime
limit=$((now + grace + 8))
while alive && [ ! -e "$dir/exit" ] && [ "$now" -lt "$limit" ]; do
    kill -s TERM "$pid"
    sleep 0.1 || sleep 1
    uptime
done
if [ ! -e "$dir/exit" ]; then
    alive && kill_supervisor
    identify $$
    timer_token="PREFECT_GPU_TIMER=$id:"
    sweep "$grace"
    [ -z "$clean" ] || timeout 30 sh -c "$clean" >/dev/null 2>&1
    read -r up rest </proc/uptime
    echo "- cancelled $up -" >"$dir/exit.cancel" && mv "$dir/exit.cancel" "$dir/exit"
fi
report
