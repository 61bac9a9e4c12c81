# shellcheck shell=sh
# Reads the command and a mark from its stdin, and runs the command with what feed.sh ($1) passes on of the rest as its stdin. When
# the command has ended it writes the mark to stderr and swallows what still comes, until "0": a connection that is closed with bytes
# unread is reset, and a reset takes the exit status with it. Where the image lacks a tool that this needs, nothing is run: it writes the
# mark twice and the tools that are missing. No command knows the mark.
exec 3>&2 2>/dev/null
IFS=' ' read -r n m || exit 255
l=
for t in dd cat; do command -v "$t" >/dev/null || l="${l:+$l and }$t"; done
[ -n "$l" ] || c=$(dd bs="$n" count=1 iflag=fullblock) || l='dd with iflag=fullblock'
if [ -n "$l" ]; then
  printf %s "$m$m$l" >&3
  LC_ALL=C
  while IFS= read -r r; do
    n=$((n - ${#r} - 1)) # of the command, whose last line may run into the "0"
    [ "$n" -ge 0 ] || case $r in *0) break ;; esac
  done
  exit 255
fi
sh -c "$1" feeder "$$" 3>&- | {
  sh -c "$c" 2>&3 3>&-
  s=$?
  printf %s "$m" >&3
  cat >/dev/null
  exit "$s"
}
