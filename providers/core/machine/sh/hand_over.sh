# shellcheck shell=sh
# Writes files as one stream: $mark, then each file named on stdin (NUL after each) with $mark after it. $digest is a command that
# hashes the stream to stderr, or nothing. All names are taken first: contents that nobody reads yet would hold up the names that are
# still on their way. The mark is a file that cat reads again and again.
# shellcheck disable=SC2154,SC2086 # the variables are set in front of this; $digest is several words
cd "$dir/work" || exit 66
names=$dir/names.$part marks=$dir/mark.$part fifo=$dir/fifo.$part
trap 'rm -f "$names" "$marks" "$fifo"' EXIT
printf %s "$mark" >"$marks" && cat >"$names" || exit 74
if [ -z "$digest" ]; then
    xargs -0 cat <"$names" 3<"$marks"
else
    mkfifo "$fifo" || exit 74
    $digest <"$fifo" >&2 &
    xargs -0 cat <"$names" 3<"$marks" 2>/dev/null | tee "$fifo" && wait
fi
