# shellcheck shell=sh
# All that is in the job's directory $dir/work. One record an entry: kind, size, mode, name; target of a link; ended by NUL twice
# because a target may be empty. busybox has no -printf: there a name with a newline is left out. An exit code of 1 is find's: it
# could not look at everything.
# shellcheck disable=SC2086,SC2154 # the two words of stat; $dir is set in front of this
cd "$dir/work" || exit 66
if find . -maxdepth 0 -readable -printf '' 2>/dev/null; then
    find . -mindepth 1 -type f ! -readable -printf 'u %s %m %P\0\0' \
        -o -type d ! \( -readable -executable \) -printf 'U %s %m %P\0\0' -prune \
        -o -printf '%y %s %m %P\0%l\0'
else
    find . -mindepth 1 ! -name '*
*' 2>/dev/null | while IFS= read -r name; do
        facts=$(stat -c '%s %a' "$name" 2>/dev/null) || continue
        set -- $facts
        kind=f link=
        if [ -L "$name" ]; then
            kind=l link=$(readlink "$name")
        elif [ -d "$name" ]; then
            kind=d
            [ -r "$name" ] && [ -x "$name" ] || kind=U
        elif [ ! -f "$name" ]; then
            kind=o
        elif [ ! -r "$name" ]; then
            kind=u
        fi
        printf '%s %s %s %s\0%s\0' $kind "$1" "$2" "${name#./}" "$link"
    done
fi
