#!/usr/bin/env bash
# patiently.sh WHAT COMMAND…: runs a command, passes its output on, and exits with
# its status. A command that prints nothing for nine seconds is still at work, and
# a line says so.
set -uo pipefail

what=$1
shift
"$@" 2>&1 | while true; do
	asked=$SECONDS
	if IFS= read -r -t 9 line; then
		printf '%s\n' "$line"
	elif [ $((SECONDS - asked)) -lt 8 ]; then # the end of the output, perhaps in a line without an end
		printf '%s' "$line"
		break
	else
		printf '%s   … %s: %d s so far\n' "$line" "$what" "$SECONDS"
	fi
done
exit "${PIPESTATUS[0]}"
