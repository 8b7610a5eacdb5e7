#!/usr/bin/env bash
# patiently.sh WHAT COMMAND…: runs a command, passes its output on, and exits with
# its status. A command that prints nothing for nine seconds is still at work, and
# a line says so. The output of many tests is long, so a failed command's last lines
# repeat what the tests said of each failure.
set -uo pipefail

what=$1
shift
failures=$(mktemp)
trap 'rm -f "$failures"' EXIT

# note LINE: keeps the line with which a test tells a failure, and at most 15 lines after it.
after=0
note() {
	if [[ $1 =~ ^[[:space:]]*'--- FAIL'|^panic:|^'WARNING: DATA RACE'|^'fatal error:'|^'testing: ' ]]; then
		after=16
	elif [[ $1 =~ ^(ok|FAIL|PASS|'?')([[:space:]]|$) ]]; then
		after=0
	fi
	if ((after > 0)); then
		after=$((after - 1))
		printf '%s\n' "$1" >>"$failures"
	fi
}

"$@" 2>&1 | while true; do
	asked=$SECONDS
	if IFS= read -r -t 9 line; then
		printf '%s\n' "$line"
		note "$line"
	elif [ $((SECONDS - asked)) -lt 8 ]; then # the end of the output, perhaps in a line without an end
		printf '%s' "$line"
		break
	else
		printf '%s   … %s: %d s so far\n' "$line" "$what" "$SECONDS"
	fi
done
status=${PIPESTATUS[0]}
if [ "$status" -ne 0 ] && [ -s "$failures" ]; then
	printf '== what failed in %s:\n' "$what"
	tail -n 120 "$failures"
fi
exit "$status"
