# shellcheck shell=sh
# The next try of a job works where the first one did: its work/ and its home/ are the first one's own, whose id is $first.
# shellcheck disable=SC2015,SC2154 # a failed second command is a failure too; locate_job and what stands in front set the variables
[ -d "$root/$first/work" ] || { echo "the job's directory is not there any more" >&2; exit 66; }
mkdir -p "$dir" && chmod 700 "$dir" || { echo "cannot make $dir" >&2; exit 73; }
for name in work home; do
    if [ -d "$root/$first/$name" ] && [ ! -e "$dir/$name" ]; then
        ln -s "$root/$first/$name" "$dir/$name" || exit 73
    fi
done
