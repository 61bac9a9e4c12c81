# shellcheck shell=sh
# Ends a claim without holding up others; its own process, so that it ends whatever becomes of the link.
# shellcheck disable=SC2154 # what is used here comes from claims.sh
release() {
    lock; mark_ending "$1"; without_key "$1"; unlock
    forget "$1" || return
    lock
    # A disk that was full has room now.
    if without_key "$1"; then
        find_claim "$1" && drop_claim
        rm -f "$claims/ending.$1"
    fi
    unlock
}
