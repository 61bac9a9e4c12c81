# shellcheck shell=sh
# Passes on what comes in counted chunks (a line with the number of bytes, then the bytes) until "0". Where the link breaks before that
# it hangs up on the command, as a terminal would: an idle `tail -f` does not stay behind. $1: the process group of exec.sh (-$1: only
# where that leads one; dash and busybox know no `kill -HUP -- -1`). Jobs of a session of their own survive all of it.
# dd reads whole blocks and not a byte more: `head -c` of busybox reads more than it should.
while IFS= read -r n; do
  case $n in 0) exit 0 ;; '' | *[!0-9]*) break ;; esac
  dd bs="$n" count=1 iflag=fullblock 2>/dev/null || exit 1
done
trap '' HUP
kill -HUP "-$1" 2>/dev/null
