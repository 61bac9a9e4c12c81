# shellcheck shell=sh
# Out: `claim NAME DEADLINE CREATED GPUS`, `ending NAME`, `left KIND NAME`, `other NAME GPUS`, `booted EPOCH`, `now EPOCH`.
# shellcheck disable=SC2154
show() { echo "claim $c_name $((today + c_left)) $c_created $c_gpus"; return 1; }
each_claim show
for one in "$claims"/ending.*; do
    one=${one##*/ending.}
    is_name "$one" && is_ending "$one" && echo "ending $one"
done
sed -n 's/^ssh-ed25519 [A-Za-z0-9+\/=]* \(pg-[a-z0-9]\{37\}\)$/left key \1/p' "$keys" 2>/dev/null
for old in "$root"/pg-*; do
    [ -e "$old" ] || continue
    old=${old##*/}
    is_name "${old%%.*}" && echo "left directory ${old%%.*}"
done
others | sed 's/^\([^:]*\):/other \1 /'
! command -v docker >/dev/null ||
    timeout 5 docker ps --all --filter "label=$label" --format "left container {{.Label \"$label\"}}" 2>/dev/null
clock
echo "booted $((today - up))"
echo "now $today"
