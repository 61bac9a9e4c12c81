# shellcheck shell=sh
# Everything of a name but its claim, which goes last: until then the machine is not free.
# shellcheck disable=SC2154 # end_all, timers, $root and $label come from before
forget() {
    end_all "$1"
    if command -v docker >/dev/null; then
        for docker in docker 'sudo -n docker'; do
            # shellcheck disable=SC2086 # two words
            left=$(timeout 20 $docker ps --all --quiet --filter "label=$label=$1" 2>/dev/null) || continue
            # shellcheck disable=SC2086 # several words
            [ -z "$left" ] || timeout 60 $docker rm --force --volumes $left >/dev/null 2>&1
            break
        done
    fi
    for old in "$root/$1".*; do
        [ -e "$old" ] || [ -L "$old" ] || continue
        # What a job made read-only, as Go's module cache is, may be its own all the same.
        rm -rf "$old" 2>/dev/null || { chmod -R u+rwX "$old"; rm -rf "$old"; } 2>/dev/null || sudo -n rm -rf "$old" 2>/dev/null
    done
    for process in $(timers "$1"); do
        [ "$process" = $$ ] || kill -s KILL "$process" 2>/dev/null
    done
    for old in "$root/$1".*; do [ ! -e "$old" ] || return 1; done
}
