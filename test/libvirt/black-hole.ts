/**
 * A session over real ssh, whose way is a black hole for a while: packets vanish, nobody is told. To be run in a
 * network namespace of its own. Argument: the hole's length in ms. Prints one line of JSON, an `Outcome`.
 */
import {execFileSync} from 'node:child_process';
import {writeFile} from 'node:fs/promises';
import {setTimeout as delay} from 'node:timers/promises';
import {openPipe} from '../../src/libvirt/transport/open-pipe.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {silentLogger} from '../../src/core/log.ts';
import {startSshd} from '../support/sshd.ts';
import {startTestLibvirtd} from '../support/libvirtd.ts';

export interface Outcome {
	/** From the end of the hole to the answer to a call that was made in it. */
	readonly backAfterMs: number;
	/** What a new connection takes on this machine, without a hole. */
	readonly connectMs: number;
	/** Whether a change that was asked for in the hole was said to be made, and whether it was. */
	readonly saidMade: boolean;
	readonly made: boolean;
}

const [holeMs] = process.argv.slice(2).map(Number);
const patient = new AbortController().signal;
await using sshd = await startSshd({hostKeys: ['ed25519']});
await using libvirtd = await startTestLibvirtd();
await writeFile(`${sshd.directory}/known_hosts`, await sshd.knownHostsLine('ed25519'));
const session = (uri: string): LibvirtSession =>
	new LibvirtSession({
		uri: 'test:///default',
		openPipe: openPipe(parseLibvirtUri(uri), {
			log: silentLogger,
			home: '/nonexistent',
			user: 'root',
			agentSocket: undefined,
		}),
	});
await using direct = session(`test:///default?socket=${libvirtd.socketPath}`);
await using far = session(
	`test+ssh://root@127.0.0.1:${sshd.port}/default?socket=${libvirtd.socketPath}&keyfile=${sshd.userKey}&known_hosts=${sshd.directory}/known_hosts`,
);
await direct.connect(patient);
const connectedAt = performance.now();
await far.connect(patient);
const connectMs = Math.round(performance.now() - connectedAt);

// By its path: npm's scripts find another program of this name first.
const nft = (script: string): Buffer => execFileSync('/usr/sbin/nft', ['-f', '-'], {input: script});
nft(
	`table inet hole { chain input { type filter hook input priority 0; tcp dport ${sshd.port} drop; tcp sport ${sshd.port} drop; }; }`,
);
const xml = '<domain type="test"><name>late</name><memory>1024</memory><os><type>hvm</type></os></domain>';
const change = far.call(procedures.domainDefineXmlFlags, {xml, flags: 0}, patient).then(
	() => true,
	() => false,
);
const look = far.call(procedures.connectGetUri, undefined, patient, {timeoutMs: 120_000});
// The length of the hole is what this is about.
await delay(holeMs);
nft('delete table inet hole');
const endedAt = performance.now();
await look;
const backAfterMs = Math.round(performance.now() - endedAt);
const saidMade = await change;
// As long again as the hole: what TCP still held back would come by now.
await delay(saidMade ? 0 : holeMs);
const {domains} = await direct.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, patient);
process.stdout.write(
	`${JSON.stringify({backAfterMs, connectMs, saidMade, made: domains.some(({name}) => name === 'late')} satisfies Outcome)}\n`,
);
