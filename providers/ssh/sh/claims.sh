# shellcheck shell=sh
# The claims of one login user on this machine. What others may write is not believed, and nothing is ever written through a link.
# shellcheck disable=SC2034 # whoever reads a claim uses its fields
LC_ALL=C
export LC_ALL
umask 077
me=$(id -u)
claims=/var/tmp/prefect-gpu-claims-$me
# The first version kept the claims of all users in one folder that anybody could write to.
shared=/var/tmp/prefect-gpu-claims
line_end='
'

own() {
    [ -e "$claims" ] || [ -L "$claims" ] || mkdir -m 700 "$claims" 2>/dev/null || [ -e "$claims" ] ||
        { echo "cannot make $claims: /var/tmp is full or cannot be written to" >&2; exit 73; }
    [ "$(stat -c '%u %a %F' "$claims" 2>/dev/null)" = "$me 700 directory" ] && return
    echo "$claims is not a directory of the user $(id -un) alone (mode 700): see who made it and remove it" >&2
    exit 73
}

lock() {
    own
    if [ -L "$claims/lock" ] || ! (: >>"$claims/lock") 2>/dev/null; then
        echo "cannot write to $claims" >&2
        exit 73
    fi
    exec 9<"$claims/lock"
    if command -v flock >/dev/null; then flock -w 30 9
    elif command -v perl >/dev/null; then perl -e 'alarm 30; open F, "<&=9" and flock F, 2 or exit 1'
    elif command -v python3 >/dev/null; then python3 -c 'import fcntl, signal; signal.alarm(30); fcntl.flock(9, 2)'
    else echo "neither flock nor perl nor python3 is installed" >&2; exit 69; fi ||
        { echo "its claims are locked for 30 s already" >&2; exit 75; }
}
unlock() { exec 9<&-; }

is_name() {
    [ ${#1} = 40 ] || return 1
    case $1 in pg-*) ;; *) return 1 ;; esac
    case ${1#pg-} in *[!a-z0-9]*) return 1 ;; esac
}
is_number() {
    case $1 in '' | 0?* | *[!0-9]*) return 1 ;; esac
    [ ${#1} -le 11 ]
}
is_boot() {
    case $1 in '' | *[!a-f0-9-]*) return 1 ;; esac
    [ ${#1} -le 40 ]
}

# A wall clock may be set; what passes from boot to boot counts by the uptime.
read -r boot_id </proc/sys/kernel/random/boot_id || boot_id=unknown
clock() { today=$(date +%s); read -r up rest </proc/uptime; up=${up%.*}; }

# $claim_files: ours, one a line: regular files of this user. Nobody else can write to the first folder; of the second only
# what this user made counts.
find_claims() {
    claim_files=
    for one in "$claims"/slot.*; do
        [ -f "$one" ] && [ ! -L "$one" ] && [ -O "$one" ] && claim_files="$claim_files$one$line_end"
    done
    [ ! -d "$shared" ] || [ -L "$shared" ] ||
        claim_files=$claim_files$(find "$shared" -maxdepth 1 -type f -user "$me" -name 'slot.[A-Za-z0-9,.-]*' 2>/dev/null)
}

# The fields of a claim, $c_left: for how many seconds it holds. What does not look like one is no claim.
read_claim() {
    claim=$1
    line=$(head -c 4096 "$1" 2>/dev/null | tr -d '\000' | head -n 1) 2>/dev/null
    case $line in *[!A-Za-z0-9,./\ _-]*) return 1 ;; esac
    set -f
    # shellcheck disable=SC2086 # split into its fields
    set -- $line
    set +f
    [ $# -ge 5 ] && is_name "$1" && is_number "$2" && is_number "$3" || return 1
    c_name=$1 c_deadline=$2 c_created=$3 c_user=$4 c_gpus=$5
    clock
    c_left=$((c_deadline - today))
    if is_boot "${6-}" && [ "$6" = "$boot_id" ] && is_number "${7-}"; then c_left=$(($7 - up)); fi
}

# Calls "$@" with the fields of each claim set, until one succeeds.
each_claim() {
    find_claims
    rest_files=$claim_files
    while [ -n "$rest_files" ]; do
        one=${rest_files%%"$line_end"*}
        case $rest_files in *"$line_end"*) rest_files=${rest_files#*"$line_end"} ;; *) rest_files= ;; esac
        read_claim "$one" && "$@" && return
    done
    return 1
}
named() { [ "$c_name" = "$1" ]; }
# $claim is the file of the claim of that name, and its fields are set.
find_claim() { each_claim named "$1"; }
drop_claim() { case $claim in "$claims"/slot.* | "$shared"/slot.*) rm -f "$claim" ;; esac; }
# On a full disk it is given back without the mark.
mark_ending() { (: >"$claims/ending.$1") 2>/dev/null || :; }
is_ending() { [ -f "$claims/ending.$1" ] && [ ! -L "$claims/ending.$1" ]; }

# --- the line of a claim among the keys that may log in ---

keys=$HOME/.ssh/authorized_keys
key_of() { printf '^ssh-ed25519 [A-Za-z0-9+/=]* %s$' "$1"; }
has_key() { grep -q "$(key_of "$1")" "$keys" 2>/dev/null; }
# Whole or not at all, and with the mode that it has: who loses this file loses the machine.
without_key() {
    has_key "$1" || return 0
    file=$(readlink -f "$keys")
    rm -f "$file.$1"
    cp -p "$file" "$file.$1" && { grep -v "$(key_of "$1")" "$file" >"$file.$1" || [ $? = 1 ]; } && mv -f "$file.$1" "$file" && return
    rm -f "$file.$1"
    return 1
}
with_key() {
    has_key "$1" && return
    mkdir -p "$HOME/.ssh" || return
    [ ! -s "$keys" ] || [ -z "$(tail -c 1 "$keys")" ] || echo >>"$keys" || return
    printf '%s %s\n' "$2" "$1" >>"$keys"
}

# --- the process that gives a claim back at its deadline ---

# shellcheck disable=SC2034 # its marks stand in its list of arguments, so that other users of the machine see what is taken
timer_mark=prefect-gpu-lease
timers() {
    # shellcheck disable=SC2013 # the words are numbers
    for one in $(grep -lsF -e "PREFECT_GPU_LEASE=$1:" /proc/[0-9]*/environ 2>/dev/null); do
        one=${one%/environ}
        [ -O "$one" ] && echo "${one#/proc/}"
    done
}
