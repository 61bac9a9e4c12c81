# shellcheck shell=sh
# In: $name, $slot, $gpus, $seconds, $key, $watch. Out: `claimed DEADLINE CREATED GPUS`, `taken NAME DEADLINE`, or `taken NAME`.
# shellcheck disable=SC2154
overlaps() {
    [ "$1" = all ] || [ "$2" = all ] && return
    case ",$1,$2," in *,,*) return 1 ;; esac
    for device in $(echo "$1" | tr ',' ' '); do
        case ",$2," in *",$device,"*) return 0 ;; esac
    done
    return 1
}
# Of what stands in the way: held, or past its deadline.
is_taken() { overlaps "$gpus" "$c_gpus" && [ "$c_left" -gt 0 ]; }
is_stale() { overlaps "$gpus" "$c_gpus" && [ "$c_left" -le 0 ]; }
start_timer() {
    if command -v setsid >/dev/null; then detach=setsid; else detach=; fi
    PREFECT_GPU_LEASE="$1:" $detach sh -c "$watch" "$timer_mark" "$1:$2" </dev/null >/dev/null 2>&1 9<&- &
}

lock
! is_ending "$name" || { echo "$name is being given back" >&2; exit 65; }
if ! find_claim "$name"; then
    ! each_claim is_taken || { echo "taken $c_name $((today + c_left))"; exit 0; }
    # Past its deadline: what its owner left ends first.
    while each_claim is_stale; do
        stale=$claim old_name=$c_name
        if without_key "$old_name" && forget "$old_name"; then
            claim=$stale
            drop_claim
            rm -f "$claims/ending.$old_name"
        fi
        if [ -e "$stale" ]; then
            echo "the claim of $old_name is past its deadline and what it left cannot be removed" >&2
            exit 74
        fi
        echo "ended $old_name"
    done
    # A power cut leaves a file without a line in it.
    file=$claims/slot.$slot
    read_claim "$file" || rm -f "$file" 2>/dev/null || { echo "$file is no claim of anybody: remove it" >&2; exit 73; }
    clock
    fresh=$claims/new.$$
    rm -f "$claims"/new.*
    if ! (printf '%s %s %s %s %s %s %s\n' "$name" $((today + seconds)) "$today" "$me" "$gpus" "$boot_id" $((up + seconds)) >"$fresh") ||
        ! ln "$fresh" "$file"; then
        rm -f "$fresh"
        echo "cannot write to $claims" >&2
        exit 73
    fi
    rm -f "$fresh"
    find_claim "$name" || { rm -f "$file"; echo "cannot write to $claims" >&2; exit 73; }
    with_key "$name" "$key" || { without_key "$name"; drop_claim; echo "cannot write to $keys" >&2; exit 73; }
fi
deadline=$((today + c_left)) created=$c_created held=$c_gpus
with_key "$name" "$key" || { echo "cannot write to $keys" >&2; exit 73; }
[ -n "$(timers "$name")" ] || start_timer "$name" "$held"
# Claimed first and looked at then: of two users who come at once, one sees the other, or each does. Later another's word counts
# no more: a job may run.
for other in $([ $((today - created)) -gt 60 ] || others); do
    overlaps "$gpus" "${other#*:}" || continue
    without_key "$name"; find_claim "$name" && drop_claim
    for process in $(timers "$name"); do kill -s KILL "$process" 2>/dev/null; done
    echo "taken ${other%%:*}"
    exit 0
done
echo "claimed $deadline $created $held"
