#!/bin/sh
# Brings a fresh Debian 12 to where `npm test` and `npm run demo` can run: node modules, then Debian packages.
# Does nothing, quickly, when everything is there. Fails loudly when something cannot be had.
set -eu
cd "$(dirname "$0")/../.."

if ! [ node_modules/.package-lock.json -nt package-lock.json ]; then
	echo '» npm ci'
	npm ci --no-audit --no-fund --loglevel=error
	touch node_modules/.package-lock.json
fi
