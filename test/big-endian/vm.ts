/**
 * Plays a pod VM from its cloud-init disk on, in whatever network namespace it is started: reads the forwarder's configuration as the VM
 * would, and answers for the agent with the certificate that it finds there. Arguments: the disk's path, and the address to listen on.
 */
import {parse} from 'yaml';
import {Secret} from '../../src/log.ts';
import {answerEmpty, startForwarder} from '../support/forwarder.ts';
import {run} from '../podvm/run.ts';

interface CloudConfig {
	readonly write_files: ReadonlyArray<{readonly path: string; readonly content: string}>;
}

const [, , disk = '', address = ''] = process.argv;
const userData = (await run('isoinfo', ['-i', disk, '-R', '-x', '/user-data'])).toString();
const content = (parse(userData) as CloudConfig).write_files.find(({path}) => path === '/run/peerpod/apf.json')?.content ?? '';
const configuration = JSON.parse(content) as Readonly<Record<string, string>>;
const {'tls-server-key': key = '', 'tls-server-cert': serverCert = '', 'tls-client-ca': clientCa = ''} = configuration;
await startForwarder({tls: {serverKey: new Secret(key), serverCert, clientCa}, address, port: 15_150, onConnection: answerEmpty});
process.stderr.write(`ready ${JSON.stringify(configuration['pod-network'])}\n`);
