/** Reads the cloud-init disk like a pod VM. */
import {parse} from 'yaml';
import {Secret} from '../../src/core/log.ts';
import type {ForwarderTls} from '../../src/sandbox/ports.ts';
import {run} from '../podvm/run.ts';

interface CloudConfig {
	readonly write_files: ReadonlyArray<{readonly path: string; readonly content: string}>;
}

/** @param disk path of an ISO 9660 file */
export async function readForwarderConfiguration(
	disk: string,
): Promise<{readonly tls: ForwarderTls; readonly podNetwork: string | undefined}> {
	const userData = (await run('isoinfo', ['-i', disk, '-R', '-x', '/user-data'])).toString();
	const content =
		(parse(userData) as CloudConfig).write_files.find(({path}) => path === '/run/peerpod/apf.json')?.content ?? '';
	const configuration = JSON.parse(content) as Readonly<Record<string, string>>;
	const {
		'tls-server-key': key = '',
		'tls-server-cert': serverCert = '',
		'tls-client-ca': clientCa = '',
	} = configuration;
	return {tls: {serverKey: new Secret(key), serverCert, clientCa}, podNetwork: configuration['pod-network']};
}
