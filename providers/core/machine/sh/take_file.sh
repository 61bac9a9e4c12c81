# shellcheck shell=sh
# Takes one file from stdin: $size bytes into $name in the job's directory, with $mode. $digest is a command that hashes it, or nothing.
# The part has a name of its own each time: after a lost link an old `cat` may still be writing.
# shellcheck disable=SC2154,SC2086 # the variables are set in front of this; $digest is several words
target=$dir/work/$name new=$dir/part.$part
mkdir -p "$(dirname "$target")" && chmod 700 "$dir" || exit 73
trap 'rm -f "$new"' EXIT
cat >"$new" || exit 74
[ "$(wc -c <"$new")" -eq "$size" ] || { echo "not all of it arrived" >&2; exit 74; }
if [ -n "$digest" ]; then $digest <"$new" || exit 74; fi
chmod "$mode" "$new" && mv -f "$new" "$target"
