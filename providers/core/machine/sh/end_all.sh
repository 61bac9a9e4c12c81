# shellcheck shell=sh
# `end_all PREFIX` ends all jobs below $jobs whose ids begin so, with their supervisors; their directories stay.
# shellcheck disable=SC2034,SC2154 # read by the functions; $jobs and $grace are set in front of this
supervised() {
    dir=${1%/state}
    alive
}
end_all() {
    id=$1 root=$jobs
    locate_job
    # As long as a supervisor may take by itself: its sweep, then its clean-up of 30 s.
    uptime
    limit=$((now + grace + 38)) running=1
    while [ -n "$running" ] && [ "$now" -lt "$limit" ]; do
        running=
        for state in "$root/$id"*/state; do supervised "$state" && kill -s TERM "$pid" && running=1; done
        [ -z "$running" ] || sleep 0.1 || sleep 1
        uptime
    done
    for state in "$root/$id"*/state; do supervised "$state" && kill_supervisor; done
    token="PREFECT_GPU_JOB=$id" timer_token="PREFECT_GPU_TIMER=$id" timer=- parent=- session=''
    sweep "$grace"
}
