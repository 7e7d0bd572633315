/** Prints the names of the domains of one libvirt after the other, as JSON. Arguments: the URIs. */
import {openPipe} from '../../src/libvirt/transport/open-pipe.ts';
import {procedures} from '../../src/libvirt/wire/procedures.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {silentLogger} from '../../src/core/log.ts';

const {signal} = new AbortController();
/** A handshake takes an emulated processor seconds, and a busy machine more. */
const patience = {connectTimeoutMs: 300_000, callTimeoutMs: 300_000};
const found = [];
for (const text of process.argv.slice(2)) {
	const uri = parseLibvirtUri(text);
	await using session = new LibvirtSession({
		uri: uri.remoteUri,
		openPipe: openPipe(uri, {
			log: silentLogger,
			home: '/nonexistent',
			user: 'root',
			agentSocket: undefined,
			...patience,
		}),
		...patience,
	});
	await session.connect(signal);
	const {domains} = await session.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, signal);
	found.push(domains.map(({name}) => name));
}

process.stdout.write(JSON.stringify(found));
