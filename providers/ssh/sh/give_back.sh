# shellcheck shell=sh
# In: $name, $release. Out: `gone`, or `ending` where it takes longer than a moment.
# shellcheck disable=SC2154
here() {
    is_ending "$name" || find_claim "$name" || has_key "$name" && return
    for old in "$root/$name".*; do [ ! -e "$old" ] || return 0; done
    return 1
}
lock # a claim whose answer was lost may still be on its way
here || { echo gone; exit 0; }
mark_ending "$name"
unlock
if command -v setsid >/dev/null; then detach=setsid; else detach=; fi
$detach sh -c "$release" sh "$name" </dev/null >/dev/null 2>&1 9<&- &
tries=0
while is_ending "$name" && [ $tries -lt 20 ]; do sleep 0.05 || sleep 1; tries=$((tries + 1)); done
if here; then echo ending; else echo gone; fi
