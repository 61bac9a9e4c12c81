# shellcheck shell=sh
# Reads the command and a mark from its stdin, and runs the command with what feed.sh ($1) passes on of the rest as its stdin. When
# the command has ended it writes the mark to stderr and swallows what still comes, until "0": a connection that is closed with bytes
# unread is reset, and a reset takes the exit status with it.
exec 3>&2 2>/dev/null
IFS=' ' read -r n m || exit 255
c=$(dd bs="$n" count=1 iflag=fullblock) || exit 255
sh -c "$1" feeder "$$" 3>&- | {
  sh -c "$c" 2>&3 3>&-
  s=$?
  printf %s "$m" >&3
  cat >/dev/null
  exit "$s"
}
