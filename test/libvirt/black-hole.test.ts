// The way to the host is a black hole for a while. Real sshd, libvirtd and packet filter, in a network namespace that
// the test makes.
import {execFile} from 'node:child_process';
import {promisify} from 'node:util';
import test from 'ava';
import type {Outcome} from './black-hole.ts';

const run = promisify(execFile);

// Shorter than what makes the way suspect; and long enough for a new connection, the old one's next packet being
// seconds away.
for (const holeMs of [1000, 5000]) {
	test(`${holeMs} ms after the loss of the host, recovery takes at most 2 s, and reported changes are true`, async t => {
		const script =
			'ip link set lo up && { echo 0 > /proc/sys/net/ipv4/tcp_syn_linear_timeouts; } 2>/dev/null; exec "$0" "$@"';
		const program = new URL('black-hole.ts', import.meta.url).pathname;
		const attempts: string[] = [];
		let isSoon = false;
		// A machine that is busy can only make it slower: what was soon enough once can be.
		while (!isSoon && attempts.length < 4) {
			const {stdout} = await run('setpriv', [
				'--pdeathsig',
				'KILL',
				'unshare',
				'--net',
				'sh',
				'-c',
				script,
				process.execPath,
				program,
				String(holeMs),
			]);
			const {backAfterMs, connectMs, saidMade, made} = JSON.parse(stdout) as Outcome;
			attempts.push(`${backAfterMs} ms, a new connection takes ${connectMs} ms`);
			t.is(made, saidMade);
			isSoon = backAfterMs < Math.max(2000, 1000 + 3 * connectMs);
		}

		t.log(...attempts);
		t.true(isSoon, attempts.join('; '));
	});
}
