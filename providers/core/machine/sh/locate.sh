# shellcheck shell=sh
# Sets $dir to the directory of the job $id below $root, where jobs live; that place is made where it can be.
# shellcheck disable=SC2034,SC2088,SC2154 # $dir is for whoever calls; the tilde is the letter that came; root and id are set
locate_job() {
    case $root in
        '~'/*)
            root=${HOME-/nonexistent}/${root#??}
            if ! mkdir -p "$root" 2>/dev/null || ! [ -w "$root" ]; then
                # A home that cannot be written. /var/tmp is everybody's: only a directory of our own counts, that nobody else enters.
                root=/var/tmp/prefect-gpu-$(id -u)
                mkdir -m 700 "$root" 2>/dev/null
                [ ! -L "$root" ] || { echo "$root is a link: remove it" >&2; exit 73; }
                case $(stat -c '%u %a' "$root") in
                    "$(id -u) "*700) ;;
                    "$(id -u) "*) echo "$root is open to others: run chmod 700 on it" >&2; exit 73 ;;
                    *) echo "$root belongs to somebody else" >&2; exit 73 ;;
                esac
            fi
            ;;
    esac
    dir=$root/$id
}
