# shellcheck shell=sh
# Unpacks a tar stream from stdin into the job's directory. $digest is a command that hashes the stream, or nothing.
# shellcheck disable=SC2154,SC2086 # the variables are set in front of this; $digest is several words
command -v tar >/dev/null || { echo "it has no tar" >&2; exit 127; }
mkdir -p "$dir/work" && chmod 700 "$dir" && cd "$dir/work" || exit 73
if [ -z "$digest" ]; then
    tar -xof -
else
    fifo=$dir/fifo.$part
    trap 'rm -f "$fifo"' EXIT
    mkfifo "$fifo" || exit 74
    $digest <"$fifo" &
    tee "$fifo" | tar -xof - && wait
fi
