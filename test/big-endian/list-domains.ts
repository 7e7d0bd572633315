/** Prints the names of a libvirt's domains, as JSON. Arguments: the URI, and the home whose `.ssh` counts. */
import {openPipe} from '../../src/libvirt/open-pipe.ts';
import {procedures} from '../../src/libvirt/procedures.ts';
import {LibvirtSession} from '../../src/libvirt/session.ts';
import {parseLibvirtUri} from '../../src/libvirt/uri.ts';
import {silentLogger} from '../../src/log.ts';

const [, , text = '', home = ''] = process.argv;
const uri = parseLibvirtUri(text);
const {signal} = new AbortController();
await using session = new LibvirtSession({uri: uri.remoteUri, openPipe: openPipe(uri, {log: silentLogger, home, user: 'root', agentSocket: undefined})});
await session.connect(signal);
const {domains} = await session.call(procedures.connectListAllDomains, {needResults: 1, flags: 0}, signal);
process.stdout.write(JSON.stringify(domains.map(({name}) => name)));
