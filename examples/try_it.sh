#!/bin/sh
# A small client of the API in shell: acquires a shop, shows it, gives it more time, lets it go. Needs curl and jq.
#   try_it.sh [URL]     the daemon's, http://localhost:8080 by default; a token, where one is needed, from API_TOKEN
set -eu
api=${1:-http://localhost:8080}/api/v1/demo

# A token goes to curl by a file that nobody else sees, not by its arguments, which everybody does.
ask() {
    if [ -n "${API_TOKEN:-}" ]; then
        printf 'header = "Authorization: Bearer %s"\n' "$API_TOKEN" | curl --config - --fail-with-body --silent --show-error "$@"
    else
        curl --fail-with-body --silent --show-error "$@"
    fi
}

# The same key is the same shop, so asking again is safe; a 503 or 429 says when (--retry waits for Retry-After).
key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
shop=$(ask --retry 5 -X POST "$api/acquire" -H 'Content-Type: application/json' \
    -d "{\"ttl\": \"10m\", \"idempotency_key\": \"$key\"}")
id=$(printf '%s' "$shop" | jq -r .id)
trap 'ask -X DELETE "$api/$id"; echo released' EXIT

printf '%s' "$shop" | jq -r '"\(.url) is yours until \(.expires_at) (\(.source), \(.acquire_ms) ms)"'
ask -X POST "$api/$id/extend" -H 'Content-Type: application/json' -d '{"ttl": "20m"}' | jq -r '"now until \(.expires_at)"'
ask "$api/$id" | jq -r '"it is \(.state)"'
